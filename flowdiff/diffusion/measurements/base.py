"""The contract of a measurement: a linear map A of clean samples, and the noise of what it gives.

    y = A·x0 + σ_y·noise,    noise ~ N(0, I),    log p(y|x0) = log N(y; A·x0, σ_y²·I)

A subclass defines A alone. Its transpose is the derivative of ⟨A·x, y⟩ in x, which autograd takes, so that it cannot
disagree with A. What methods need of A·Aᵀ are solutions of linear systems, which conjugate gradients find from
products.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from flowdiff.diffusion.conjugate_gradient import solve
from flowdiff.noise import Generators, randn_like
from flowdiff.shapes import append_dims, sum_except_batch, times

SOLVING = 64  # iterations of a solution at most; A·Aᵀ of most measurements has one eigenvalue and needs one


class Measurement(ABC):
    """y = A·x0 + σ_y·noise with a linear map A.

    Args:
        shape: shape of a sample x0.
        sigma_y: standard deviation of the noise of y, ≥ 0, in the unit of the data.
    """

    def __init__(self, shape: tuple[int, ...], sigma_y: float):
        self.shape = tuple(shape)
        self.sigma_y = sigma_y

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """A·x, (B, …), for x (B, *shape); linear and differentiable in x."""

    def transposed(self, y: Tensor) -> Tensor:
        """Aᵀ·y, (B, *shape), for y shaped as A·x: ⟨A·x, y⟩ = ⟨x, Aᵀ·y⟩."""
        with torch.enable_grad():
            x = y.new_zeros(len(y), *self.shape).requires_grad_(True)
            measured = self(x)
            if not measured.numel():
                return x.detach()
            (gradient,) = torch.autograd.grad(measured, x, y)
        return gradient

    def observe(self, x0: Tensor, generator: Generators = None) -> Tensor:
        """y = A·x0 + σ_y·noise of clean samples (B, *shape)."""
        y = self(x0)
        return y + self.sigma_y * randn_like(y, generator)

    def log_likelihood(self, y: Tensor, x0: Tensor) -> Tensor:
        """log N(y; A·x0, σ_y²·I) in nats, (B,), for σ_y > 0."""
        error = (y - self(x0)).flatten(1) / self.sigma_y
        size = error.shape[1]
        return -0.5 * sum_except_batch(error**2) - size * (math.log(self.sigma_y) + 0.5 * math.log(2 * math.pi))

    def solved(self, b: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
        """(signal·A·Aᵀ + noise·I)⁻¹·b, like b (B, …), for signal > 0 and noise ≥ 0 of each sample, (B,)."""
        signal, noise = append_dims(signal, b.ndim), append_dims(noise, b.ndim)
        return solve(lambda v: signal * self(self.transposed(v)) + noise * v, b, SOLVING)

    def least_squares(self, y: Tensor) -> Tensor:
        """A⁺·y, (B, *shape): of all x with the smallest ‖A·x − y‖ the one of smallest norm."""
        ones = y.new_ones(len(y))
        return self.transposed(self.solved(y, ones, 0 * ones))

    def as_sample(self, y: Tensor) -> Tensor:
        """y as a sample to be looked at, (B, *shape); A⁺·y by default."""
        return self.least_squares(y)

    def describe(self) -> str:
        """The shapes and the noise in words."""
        size = math.prod(self(torch.zeros(1, *self.shape)).shape[1:])
        return f"{size} numbers of {times(self.shape)}, σ_y = {self.sigma_y:g}"
