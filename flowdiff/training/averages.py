"""Averages of the weights during training, and averages of any length after it.

An average over the steps t = 1, 2, … is θ̂(t) = β(t)·θ̂(t−1) + (1 − β(t))·θ(t), with θ̂(1) = θ(1).

    exponential   β(t) = min(β, 2^(−1/(r·t))): the half-life is at most the share r of the steps done (ramp-up)
    power         β(t) = (1 − 1/t)^(γ+1), that is θ̂(t) = Σ_τ p(τ)·θ(τ) with p(τ) = (τ^(γ+1) − (τ−1)^(γ+1))/t^(γ+1)

A power function is as wide as the training is long. Its width is σ_rel, the standard deviation of p over t:
σ_rel = √(γ+1)/((γ+2)·√(γ+3)), from 0.289 (γ = 0, the mean of all weights) down to 0.

Snapshots of two power averages determine all others: the profile p of an average that was not tracked is close to a
combination Σ xᵢ·pᵢ of theirs, and Σ xᵢ·θ̂ᵢ is then close to that average.

Source: Karras, Aittala, Lehtinen, Hellsten, Aila, Laine, Analyzing and improving the training dynamics of diffusion
models, 2024, section 3 and appendix C. Ramp-up: Karras et al., 2022, in code in EDM.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, NamedTuple, Protocol

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor

WIDEST = 0.288675  # σ_rel of the mean of all weights, γ = 0, is 1/(2·√3)
Fraction = Annotated[float, Field(ge=0, lt=1)]
SigmaRel = Annotated[float, Field(gt=0, lt=WIDEST)]


@dataclass(frozen=True)
class Averaging:
    """Averages of the weights beside that of ema_decay.

    Args:
        rampup: r ≥ 0, by which the half-lives of exponential averages grow; 0 for none.
        decays: decays per step of further exponential averages.
        sigma_rel: widths of power averages, in (0, 0.2886).
        snapshots: how often these are kept, evenly over the training, ≥ 1.
    """

    rampup: NonNegativeFloat
    decays: list[Fraction]
    sigma_rel: list[SigmaRel]
    snapshots: PositiveInt


class Profile(Protocol):
    """How much of an average each step is."""

    @property
    def name(self) -> str:
        """What it is called in files and tables."""

    def beta(self, step: int) -> float:
        """What is kept of the average at a step, which counts from 1."""


@dataclass(frozen=True)
class Exponential:
    """An exponential average.

    Args:
        decay: β in [0, 1).
        rampup: r ≥ 0; 0 for none.
    """

    decay: float
    rampup: float = 0.0

    @property
    def name(self) -> str:
        return f"decay-{self.decay:g}"

    def beta(self, step: int) -> float:
        return min(self.decay, 2 ** (-1 / (self.rampup * step))) if self.rampup else self.decay


@dataclass(frozen=True)
class Power:
    """A power average.

    Args:
        sigma_rel: its width, in (0, 0.2886).
    """

    sigma_rel: float

    @property
    def name(self) -> str:
        return f"sigma_rel-{self.sigma_rel:g}"

    def beta(self, step: int) -> float:
        return (1 - 1 / step) ** (gamma_of(self.sigma_rel) + 1)


@cache
def gamma_of(sigma_rel: float) -> float:
    """γ of a width: the root ≥ 0 of (γ+2)²·(γ+3)·σ_rel² = γ + 1."""
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def profiles(averaging: Averaging) -> list[Profile]:
    """The averages that a run tracks beside that of ema_decay."""
    exponential: list[Profile] = [Exponential(decay, averaging.rampup) for decay in averaging.decays]
    return exponential + [Power(width) for width in averaging.sigma_rel]


class Snapshot(NamedTuple):
    """A power average at a step."""

    sigma_rel: float
    step: int


def snapshot_name(snapshot: Snapshot) -> str:
    """The file of a snapshot."""
    return f"{snapshot.sigma_rel:g}-{snapshot.step}.safetensors"


class Combination(NamedTuple):
    """The weights xᵢ of snapshots, and ‖p − Σ xᵢ·pᵢ‖/‖p‖: how far their profile is from the one that is wanted."""

    weights: np.ndarray
    error: float


def combination(snapshots: Sequence[Snapshot], wanted: Snapshot) -> Combination:
    """How to combine snapshots to another power average: the least squares of the profiles, with Σ xᵢ = 1.

    The inner product of two profiles, tₐ ≤ t_b, is ⟨pₐ, p_b⟩ = (γₐ+1)·(γ_b+1)/(γₐ+γ_b+1)·(tₐ/t_b)^γ_b/t_b.

    Args:
        snapshots: power averages at any steps, at least one.
        wanted: width and step of the average.
    """
    steps = np.array([snapshot.step for snapshot in snapshots], float)
    gammas = np.array([gamma_of(snapshot.sigma_rel) for snapshot in snapshots])
    gamma = gamma_of(wanted.sigma_rel)
    gram = _inner(steps[:, None], gammas[:, None], steps[None], gammas[None])
    with_wanted = _inner(steps, gammas, np.full_like(steps, wanted.step), np.full_like(steps, gamma))
    size = 1 / np.sqrt(np.diag(gram))  # the profiles of few steps are larger by orders of magnitude
    n = len(steps)
    system = np.zeros((n + 1, n + 1))  # with the multiplier of Σ x = 1
    system[:n, :n] = gram * size[:, None] * size
    system[n, :n] = system[:n, n] = size
    x = np.linalg.lstsq(system, np.append(with_wanted * size, 1.0), rcond=None)[0][:n] * size
    own = float(_inner(*map(np.array, (wanted.step, gamma, wanted.step, gamma))))
    return Combination(x, math.sqrt(max(0.0, float(x @ gram @ x - 2 * x @ with_wanted + own) / own)))


def _inner(t_a: np.ndarray, gamma_a: np.ndarray, t_b: np.ndarray, gamma_b: np.ndarray) -> np.ndarray:
    late, of_late = np.maximum(t_a, t_b), np.where(t_a > t_b, gamma_a, gamma_b)
    share = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
    return share * (np.minimum(t_a, t_b) / late) ** of_late / late


def ramped(decay: float, rampup: float) -> Callable[[list[Tensor], list[Tensor], Tensor | int], None]:
    """The update of torch's AveragedModel for an exponential average with ramp-up; it never waits for a device."""

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        step = torch.as_tensor(count, dtype=torch.float64) + 1  # of torch's counter: averages before this one
        fresh = 1 - torch.exp2(-1 / (rampup * step)).clamp(max=decay)
        for average, new in zip(averaged, current, strict=True):
            average.lerp_(new, fresh.to(average))

    return update
