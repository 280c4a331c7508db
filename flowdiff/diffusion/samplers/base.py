"""Samplers: from x at noise level σ₀ down a grid σ₀ > σ₁ > … > σ_N = 0 to x0.

The probability-flow ODE in variance-exploding coordinates is dx/dσ = d = (x − D)/σ. Its Euler step from σ to
σ' is

    x' = x + (σ' − σ)·(x − D)/σ = D + (σ'/σ)·(x − D),

a point on the line from D to x. Written in the second way it is x' = D exactly at σ' = 0, without dividing by
anything that vanishes, and every sampler here is made of such steps. The exact solution,

    x' = (σ'/σ)·x + (1 − σ'/σ)·D̂,   D̂ = ∫ e^s D(σe^{−s}) ds / ∫ e^s ds  over 0 ≤ s ≤ h = ln(σ/σ'),

is such a step towards a weighted mean D̂ of the D on the way; methods of higher order differ in how they estimate it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioning import Conditioning
from flowdiff.noise import BrownianPath, Generators

Callback = Callable[[int, float, Tensor, Tensor], None]
"""(step, σ, x, D): called in every step with the x it started from and the D found there."""


class Denoise(NamedTuple):
    """A denoiser with the condition of a batch filled in."""

    denoiser: Callable[[Tensor, Tensor, Conditioning | None], Tensor]
    cond: Conditioning | None

    def __call__(self, x: Tensor, sigma: float | Tensor, rows: Tensor | None = None) -> Tensor:
        """D (b, …) of x (b, …) at one level or at levels (b,); rows (b,): which of the batch these are, all if None."""
        levels = sigma if isinstance(sigma, Tensor) else x.new_full((len(x),), sigma)
        return self.denoiser(x, levels, self.cond if rows is None or self.cond is None else self.cond[rows])


class Visit(NamedTuple):
    """A step that was made: it began in x (B, …) at sigma and found D (B, …) there."""

    sigma: float
    x: Tensor
    denoised: Tensor


class Step(NamedTuple):
    """What one step knows beside x.

    index: 0 … count − 1, of `count` steps.  sigma: where x is.  sigma_next < sigma: where it goes, ≥ 0.
    past: the steps before, the latest first, none in the first step and never more than the sampler's `memory`.
    generator: source of noise that is drawn anew in every step.  path: noise that belongs to the samples, the same
    for every grid; a sampler uses one of the two.
    """

    index: int
    count: int
    sigma: float
    sigma_next: float
    past: Sequence[Visit]
    generator: Generators
    path: BrownianPath


class Sampler(ABC):
    """Walks a grid of noise levels down to 0, one `step` at a time.

    num_steps ≥ 1: the number of steps the caller makes the grid for, `sigmas = schedule(sampler.num_steps)`.
    memory ≥ 0: how many earlier steps a step looks back on.
    """

    def __init__(self, num_steps: int, memory: int = 0):
        self.num_steps = num_steps
        self.memory = memory

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
        denoise = Denoise(denoiser, cond)
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
