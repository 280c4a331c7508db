"""Schedules: the grid of noise levels σ_max = σ₀ > σ₁ > … > σ_{N−1} > σ_N = 0 that a sampler walks down.

Also the tables of discrete diffusion models, in variance-exploding units:

    ᾱ_t = Π_{s≤t} (1 − β_s),   σ_t = √((1 − ᾱ_t)/ᾱ_t),   x = x_VP/√ᾱ = √(σ²+1)·x_VP.

The start x_VP ~ N(0, I) of a variance-preserving model is x ~ N(0, (σ_max²+1)·I). Sampling here starts from
σ_max·N(0, I), smaller by a factor of 1.002 for the smallest σ_max of the tables below (`sqrt_linear`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from flowdiff.errors import ConfigurationError
from flowdiff.registry import nearest, register

Table = Literal["linear", "sqrt_linear", "cosine"]


class Schedule(ABC):
    """A grid of noise levels between `sigma_max` and `sigma_min`, made for any number of steps.

    sigma_min, sigma_max: the smallest and the largest noise level, in data units.
    """

    def __init__(self, sigma_min: float, sigma_max: float):
        check_range(sigma_min, sigma_max)
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max

    def __call__(self, num_steps: int, sigma_max: float | None = None) -> Tensor:
        """The grid of `num_steps` steps: (num_steps + 1,) float64 on the CPU, decreasing, last entry 0.

        sigma_max: start there instead of at the schedule's own largest level, in (0, self.sigma_max]. A start
        at or below self.sigma_min leaves room for one step only, (sigma_max, 0), and one low in a `ddpm`
        table for no more than there are levels below it.
        Raises ConfigurationError for num_steps < 1 and for a start outside its range.
        """
        if num_steps < 1:
            raise ConfigurationError(f"num_steps={num_steps} is not allowed: a sampler needs at least 1 step.")
        top = self.sigma_max if sigma_max is None else float(sigma_max)
        if not 0 < top <= self.sigma_max:
            raise ConfigurationError(
                f"a start at sigma={top:g} is not allowed: it has to be above 0 and at most the schedule's"
                f" sigma_max={self.sigma_max:g}."
            )
        levels = self._levels(num_steps, top) if top > self.sigma_min else torch.empty(1, dtype=torch.float64)
        levels[0] = top  # exact, where a formula would give it up to rounding
        return torch.cat([levels, levels.new_zeros(1)])

    @abstractmethod
    def _levels(self, num_steps: int, sigma_max: float) -> Tensor:
        """The levels before the final 0: (num_steps,) float64, down from sigma_max > self.sigma_min."""


@register("schedule", "karras")
class Karras(Schedule):
    """Levels evenly spaced in σ^(1/ρ): σ_i = (σ_max^{1/ρ} + i/(N−1)·(σ_min^{1/ρ} − σ_max^{1/ρ}))^ρ.

    rho > 0: the larger, the more of the steps are at low noise. One step is (σ_max, 0).
    Source: Karras, Aittala, Aila, Laine, Elucidating the design space of diffusion-based generative models,
    2022, eq. 5.
    """

    def __init__(self, *, sigma_min: PositiveFloat, sigma_max: PositiveFloat, rho: PositiveFloat):
        super().__init__(sigma_min, sigma_max)
        self.rho = rho

    def _levels(self, num_steps: int, sigma_max: float) -> Tensor:
        # linspace gives (0,) for one step, where i/(N−1) would divide by zero
        ramp = torch.linspace(0, 1, num_steps, dtype=torch.float64)
        top, bottom = sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return (top + ramp * (bottom - top)) ** self.rho


@register("schedule", "exponential")
class Exponential(Schedule):
    """Levels evenly spaced in ln σ: σ_i = σ_max (σ_min/σ_max)^{i/(N−1)}, the limit of `karras` for ρ → ∞.

    Source: Song, Sohl-Dickstein, Kingma, Kumar, Ermon, Poole, Score-based generative modeling through
    stochastic differential equations, 2021 (the levels of the variance-exploding process).
    """

    def __init__(self, *, sigma_min: PositiveFloat, sigma_max: PositiveFloat):
        super().__init__(sigma_min, sigma_max)

    def _levels(self, num_steps: int, sigma_max: float) -> Tensor:
        ramp = torch.linspace(0, 1, num_steps, dtype=torch.float64)
        return sigma_max * (self.sigma_min / sigma_max) ** ramp


@register("schedule", "ddpm")
class DDPM(Schedule):
    """Every (num_levels/N)-th level of a discrete model's table, counted from the largest.

    table, num_levels, beta_start, beta_end: see `ddpm_sigmas`.
    Raises ConfigurationError if more steps are asked for than the table has levels.
    Source: Ho, Jain, Abbeel, Denoising diffusion probabilistic models, 2020; the "trailing" spacing of Lin,
    Liu, Li, Yang, Common diffusion noise schedules and sample steps are flawed, 2024.
    """

    def __init__(
        self,
        *,
        table: Table,
        num_levels: PositiveInt,
        beta_start: PositiveFloat | None,
        beta_end: PositiveFloat | None,
    ):
        self.table = ddpm_sigmas(table, num_levels, beta_start, beta_end)
        super().__init__(self.table[0].item(), self.table[-1].item())

    def _levels(self, num_steps: int, sigma_max: float) -> Tensor:
        if num_steps > len(self.table):
            raise ConfigurationError(
                f"num_steps={num_steps} is not allowed: schedule=ddpm has {len(self.table)} levels, take at"
                " most so many steps or raise schedule.num_levels."
            )
        levels = torch.cat([self.table[self.table < sigma_max], self.table.new_tensor([sigma_max])])
        count = len(levels)
        num_steps = min(num_steps, count)  # a lower start may leave fewer levels: then all are taken
        indices = torch.arange(num_steps, 0, -1, dtype=torch.float64) * (count / num_steps)
        return levels[indices.round().long() - 1]


def ddpm_sigmas(
    table: Table, num_levels: int, beta_start: float | None = None, beta_end: float | None = None
) -> Tensor:
    """The noise levels σ_t = √((1−ᾱ_t)/ᾱ_t) of a discrete diffusion model: (num_levels,) float64, increasing.

    table: `linear` β from 1e-4 to 0.02 (Ho et al., Denoising diffusion probabilistic models, 2020),
    `sqrt_linear` √β linear, β from 0.00085 to 0.012 (Rombach et al., High-resolution image synthesis with
    latent diffusion models, 2022), `cosine` ᾱ(t) = cos²((t/T + 0.008)/1.008 · π/2), β ≤ 0.999 (Nichol,
    Dhariwal, Improved denoising diffusion probabilistic models, 2021).  num_levels ≥ 2: T.  beta_start,
    beta_end in (0, 1): other ends than the table's customary ones; `cosine` has none.  Raises
    ConfigurationError.
    """
    if table not in TABLES:
        raise ConfigurationError(f"table={table} is unknown: {nearest(table, TABLES)}.")
    if num_levels < 2:
        raise ConfigurationError(f"num_levels={num_levels} is not allowed: a table has at least 2 levels.")
    ends = {k: v for k, v in {"beta_start": beta_start, "beta_end": beta_end}.items() if v is not None}
    if table == "cosine" and ends:
        raise ConfigurationError(
            f"{', '.join(ends)} cannot be set for table=cosine: its β follow from the cosine, leave them null"
            " or take another table."
        )
    for key, value in ends.items():
        if not 0 < value < 1:
            raise ConfigurationError(f"{key}={value} is not allowed: a β lies strictly between 0 and 1.")
    betas = TABLES[table](num_levels, **ends)
    # ln ᾱ and expm1 keep the low levels accurate, where 1 − ᾱ would cancel
    log_alpha_bar = torch.log1p(-betas).cumsum(0)
    return torch.expm1(-log_alpha_bar).sqrt()


def _linear_betas(num_levels: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> Tensor:
    return torch.linspace(beta_start, beta_end, num_levels, dtype=torch.float64)


def _sqrt_linear_betas(num_levels: int, beta_start: float = 0.00085, beta_end: float = 0.012) -> Tensor:
    return torch.linspace(math.sqrt(beta_start), math.sqrt(beta_end), num_levels, dtype=torch.float64) ** 2


def _cosine_betas(num_levels: int) -> Tensor:
    t = torch.arange(num_levels + 1, dtype=torch.float64) / num_levels
    alpha_bar = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)


TABLES = {"linear": _linear_betas, "sqrt_linear": _sqrt_linear_betas, "cosine": _cosine_betas}


def check_range(sigma_min: float, sigma_max: float) -> None:
    """Raise ConfigurationError unless 0 < sigma_min < sigma_max < ∞."""
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ConfigurationError(
            f"sigma_min={sigma_min:g} and sigma_max={sigma_max:g} are not allowed: take"
            " 0 < sigma_min < sigma_max, both finite."
        )
