"""Samplers: from x at noise level σ₀ down a grid σ₀ > σ₁ > … > σ_N = 0 to x0.

The probability-flow ODE in variance-exploding coordinates is dx/dσ = d = (x − D)/σ. Its Euler step from σ to
σ' is

    x' = x + (σ' − σ)·(x − D)/σ = D + (σ'/σ)·(x − D),

a point on the line from D to x. Written in the second way it is x' = D exactly at σ' = 0, without dividing by
anything that vanishes, and every sampler here is made of such steps.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from flowdiff.conditioning import Conditioning
from flowdiff.errors import ConfigurationError
from flowdiff.noise import Generators

Denoise = Callable[[Tensor, float], Tensor]
"""(x, σ) -> D: the denoiser at one noise level for the whole batch, its condition filled in."""

Callback = Callable[[int, float, Tensor, Tensor], None]
"""(step, σ, x, D): called in every step with the x it started from and the D found there."""


class Step(NamedTuple):
    """What one step knows beside x.

    index: 0 … count − 1, of `count` steps.  sigma: where x is.  sigma_next < sigma: where it goes, ≥ 0.
    previous: (σ, D) of the step before, None in the first.  generator: source of noise.
    """

    index: int
    count: int
    sigma: float
    sigma_next: float
    previous: tuple[float, Tensor] | None
    generator: Generators


class Sampler(ABC):
    """Walks a grid of noise levels down to 0, one `step` at a time.

    num_steps ≥ 1: the number of steps the caller makes the grid for, `sigmas = schedule(sampler.num_steps)`.
    """

    def __init__(self, num_steps: int):
        self.num_steps = num_steps

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Callable[[Tensor, Tensor, Conditioning | None], Tensor],
        x: Tensor,
        sigmas: Tensor | Sequence[float],
        cond: Conditioning | None = None,
        generator: Generators = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """x (B, …) at noise level sigmas[0] -> x0 (B, …).

        denoiser: (x, sigma (B,), cond) -> D.
        sigmas: (N+1,) decreasing; equal neighbours are a step of length zero, which is left out.
        generator: one Generator, or one per sample, which makes a sample independent of its batch.
        Raises ConfigurationError if the grid increases or holds a negative or infinite level.
        """
        levels = distinct_levels(sigmas)

        def denoise(x: Tensor, sigma: float) -> Tensor:
            return denoiser(x, x.new_full((len(x),), sigma), cond)

        previous = None
        for index, (sigma, sigma_next) in enumerate(pairwise(levels)):
            at = Step(index, len(levels) - 1, sigma, sigma_next, previous, generator)
            x_next, denoised = self.step(denoise, x, at)
            if callback is not None:
                callback(index, sigma, x, denoised)
            x, previous = x_next, (sigma, denoised)
        return x

    @abstractmethod
    def step(self, denoise: Denoise, x: Tensor, at: Step) -> tuple[Tensor, Tensor]:
        """From x (B, …) at at.sigma to x' (B, …) at at.sigma_next, and the D (B, …) found on the way."""


def euler_step(x: Tensor, denoised: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """x' = D + (σ'/σ)·(x − D), all of shape (B, …); exactly D for σ' = 0."""
    return torch.lerp(denoised, x, sigma_next / sigma)


def distinct_levels(sigmas: Tensor | Sequence[float]) -> list[float]:
    """The grid as numbers, each once; ConfigurationError unless finite, decreasing and ≥ 0."""
    levels = torch.as_tensor(sigmas, dtype=torch.float64).tolist()
    if not levels or not all(0 <= level < math.inf for level in levels):
        raise ConfigurationError(
            "the noise levels of a sampler have to be finite and not negative, but they are"
            f" {_shortened(levels)}: a start at σ = ∞ (zero signal) has to be replaced by a large finite one."
        )
    if any(after > before for before, after in pairwise(levels)):
        raise ConfigurationError(
            f"the noise levels of a sampler have to decrease, but they are {_shortened(levels)}: sort them."
        )
    return list(dict.fromkeys(levels))


def _shortened(levels: list[float]) -> str:
    shown = [f"{level:g}" for level in levels]
    return ", ".join(shown if len(shown) <= 6 else [*shown[:3], "…", *shown[-3:]]) or "none"
