"""Samplers: from x at noise level σ₀ down a grid σ₀ > σ₁ > … > σ_N = 0 to x0.

The probability-flow ODE in variance-exploding coordinates is dx/dσ = d = (x − D)/σ. Its Euler step from σ to σ' is

    x' = x + (σ' − σ)·(x − D)/σ = D + (σ'/σ)·(x − D),

a point on the line from D to x. The second form gives x' = D exactly at σ' = 0 and divides by nothing that vanishes;
every sampler here is made of such steps. The exact solution,

    x' = (σ'/σ)·x + (1 − σ'/σ)·D̂,   D̂ = ∫ e^s D(σe^{−s}) ds / ∫ e^s ds  over 0 ≤ s ≤ h = ln(σ/σ'),

is such a step towards a weighted mean D̂ of D along the way; methods of higher order differ in how they estimate D̂.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from flowdiff.diffusion.denoiser import Denoise
from flowdiff.diffusion.schedules.base import Callback
from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.networks.base import Network
from flowdiff.noise import BrownianPath, Generators


class DenoiserLike(Denoise, Protocol):
    """A denoiser that knows its network: a Denoiser, a model, a guidance around one, or an oracle."""

    @property
    def network(self) -> Network:
        """The network inside, which start=flow samples."""


@dataclass(frozen=True)
class BatchDenoiser:
    """A denoiser with the condition of a batch filled in."""

    denoiser: Denoise
    cond: Conditioning | None

    def __call__(self, x: Tensor, sigma: float | Tensor, rows: Tensor | None = None) -> Tensor:
        """D (b, …) for samples of the batch.

        Args:
            x: (b, …), the samples.
            sigma: one noise level for all of them, or one for each, (b,).
            rows: (b,), the positions of the samples in the batch; by default they are the whole batch.
        """
        levels = sigma if isinstance(sigma, Tensor) else x.new_full((len(x),), sigma)
        return self.denoiser(x, levels, self.cond if rows is None or self.cond is None else self.cond[rows])


@dataclass(frozen=True)
class Visit:
    """A completed step: it began with x (B, …) at the noise level sigma and found D (B, …) there."""

    sigma: float
    x: Tensor
    denoised: Tensor


@dataclass(frozen=True)
class Step:
    """All that a step knows besides x.

    Args:
        index: number of the step, 0 … count − 1.
        count: number of steps in the grid.
        sigma: noise level of x, > 0.
        sigma_next: noise level to reach, 0 ≤ sigma_next < sigma.
        past: earlier steps, latest first, at most the sampler's `memory`; empty in the first step.
        generator: source of noise that is drawn independently in every step.
        path: noise that belongs to the samples and is the same for every grid; a sampler uses either this or the
            generator.
    """

    index: int
    count: int
    sigma: float
    sigma_next: float
    past: Sequence[Visit]
    generator: Generators
    path: BrownianPath


class Sampler(ABC):
    """Steps down a grid of noise levels to 0.

    of_consistency: whether it takes a consistency function, `scaling=consistency`, in place of a denoiser.
    asks_for_rows: whether it also calls the denoiser for some samples of the batch alone.

    Args:
        num_steps: number of steps the caller makes the grid for, `sigmas = schedule(sampler.num_steps)`, ≥ 1.
        memory: number of earlier steps that a step uses, ≥ 0.
    """

    of_consistency: bool = False
    asks_for_rows: bool = False

    def __init__(self, num_steps: int, memory: int = 0):
        self.num_steps = num_steps
        self.memory = memory

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Denoise,
        x: Tensor,
        sigmas: Tensor | Sequence[float],
        cond: Conditioning | None = None,
        generator: Generators = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """Take x (B, …) at the noise level sigmas[0] to x0 (B, …).

        Args:
            denoiser: (x, sigma (B,), cond) → D.
            x: (B, …), the noised samples; it is not changed.
            sigmas: (N+1,), the grid, decreasing; equal neighbours count once.
            cond: the condition of the B samples, or None.
            generator: one Generator, or one per sample, which makes a sample independent of its batch.
            callback: called in every step with (step, σ, x, D).

        Raises:
            ConfigurationError: the grid increases or holds a negative or infinite level.
        """
        levels = distinct_levels(sigmas)
        denoise = BatchDenoiser(denoiser, cond)
        past: deque[Visit] = deque(maxlen=self.memory)
        path = BrownianPath(x, generator)
        for index, (sigma, sigma_next) in enumerate(pairwise(levels)):
            at = Step(index, len(levels) - 1, sigma, sigma_next, past, generator, path)
            x_next, denoised = self.step(denoise, x, at)
            if callback is not None:
                callback(index, sigma, x, denoised)
            past.appendleft(Visit(sigma, x, denoised))
            x = x_next
        return x

    @abstractmethod
    def step(self, denoise: BatchDenoiser, x: Tensor, at: Step) -> tuple[Tensor, Tensor]:
        """x' (B, …) at at.sigma_next from x (B, …) at at.sigma, and the D (B, …) of the first denoiser call."""


def euler_step(x: Tensor, denoised: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """x' = D + (σ'/σ)·(x − D), all of shape (B, …); exactly D for σ' = 0."""
    return torch.lerp(denoised, x, sigma_next / sigma)


def distinct_levels(sigmas: Tensor | Sequence[float]) -> list[float]:
    """The grid as numbers without repetitions; ConfigurationError unless finite, decreasing and ≥ 0."""
    levels = torch.as_tensor(sigmas, dtype=torch.float64).tolist()
    if not levels or not all(0 <= level < math.inf for level in levels):
        raise ConfigurationError(
            "the noise levels of a sampler have to be finite and not negative, but they are"
            f" {_shortened(levels)}: replace a start at σ = ∞ (zero signal) by a large finite one."
        )
    if any(after > before for before, after in pairwise(levels)):
        raise ConfigurationError(
            f"the noise levels of a sampler have to decrease, but they are {_shortened(levels)}: sort them."
        )
    return list(dict.fromkeys(levels))


def _shortened(levels: list[float]) -> str:
    shown = [f"{level:g}" for level in levels]
    return ", ".join(shown if len(shown) <= 6 else [*shown[:3], "…", *shown[-3:]]) or "none"
