"""The levels of discrete diffusion models, in variance-exploding units:

    ᾱ_t = Π_{s≤t} (1 − β_s),   σ_t = √((1 − ᾱ_t)/ᾱ_t),   x = x_VP/√ᾱ = √(σ²+1)·x_VP.

The start x_VP ~ N(0, I) of a variance-preserving model is x ~ N(0, (σ_max²+1)·I). Sampling here starts from
σ_max·N(0, I), smaller by a factor of 1.002 for the smallest σ_max of the tables below (`sqrt_linear`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from flowdiff.diffusion.schedules.base import Schedule
from flowdiff.errors import ConfigurationError, nearest
from flowdiff.registry import register

Table = Literal["linear", "sqrt_linear", "cosine"]
Spacing = Literal["trailing", "leading", "linspace"]


@register("schedule", "ddpm")
class DDPM(Schedule):
    """Some of the noise levels of a discrete diffusion model's table.

    σ_t = √((1−ᾱ_t)/ᾱ_t),  ᾱ_t = Π_{s≤t} (1 − β_s),  t = 1 … T

    The spacing chooses N of the T levels: `trailing` takes t = N, N−1, … 1 times T/N, rounded; `linspace` spaces t
    evenly from T to 1, rounded; `leading` takes t = 1 plus N−1, … 0 times ⌊T/N⌋ and stops short of the largest level,
    as many published models were sampled. A single step is (σ_max, 0) in all of them.

    Args:
        table: formula of β, `linear`, `sqrt_linear` or `cosine`.
        num_levels: T, number of levels in the table, ≥ 2; also the largest number of steps.
        spacing: `trailing`, `linspace` or `leading`.
        beta_start: first β, in (0, 1); null takes the table's usual one; `cosine` allows null only.
        beta_end: last β, in (0, 1); null takes the table's usual one; `cosine` allows null only.

    Raises:
        ConfigurationError: num_levels is below 2, a β is outside (0, 1) or given for table=cosine, or a grid of more
            than num_levels steps is asked for.

    Source: Ho, Jain, Abbeel, Denoising diffusion probabilistic models, 2020; spacings: Lin, Liu, Li, Yang, Common
    diffusion noise schedules and sample steps are flawed, 2024, table 2.
    """

    def __init__(
        self,
        *,
        table: Table,
        num_levels: PositiveInt,
        spacing: Spacing,
        beta_start: PositiveFloat | None,
        beta_end: PositiveFloat | None,
    ):
        self.table = ddpm_sigmas(table, num_levels, beta_start, beta_end)
        self.spacing = spacing
        super().__init__(self.table[0].item(), self.table[-1].item())

    def _levels(self, num_steps: int, sigma_max: float) -> Tensor:
        if num_steps > len(self.table):
            raise ConfigurationError(
                f"num_steps={num_steps} is not allowed: schedule=ddpm has {len(self.table)} levels; take at"
                " most that many steps or raise schedule.num_levels."
            )
        levels = torch.cat([self.table[self.table < sigma_max], self.table.new_tensor([sigma_max])])
        count = len(levels)
        num_steps = min(num_steps, count)  # a lower start may leave fewer levels: all of them are used
        chosen = levels[SPACINGS[self.spacing](count, num_steps) if num_steps > 1 else [count - 1]]
        if sigma_max < self.sigma_max:
            chosen[0] = sigma_max  # the noise level of x, where the first step begins
        return chosen


# (T, N) → the N chosen levels t − 1 of the T levels
SPACINGS: dict[str, Callable[[int, int], Tensor]] = {
    "trailing": lambda T, N: (torch.arange(N, 0, -1, dtype=torch.float64) * (T / N)).round().long() - 1,
    "leading": lambda T, N: torch.arange(N - 1, -1, -1) * (T // N),
    "linspace": lambda T, N: torch.linspace(T - 1, 0, N, dtype=torch.float64).round().long(),
}


def ddpm_sigmas(
    table: Table, num_levels: int, beta_start: float | None = None, beta_end: float | None = None
) -> Tensor:
    """The noise levels σ_t = √((1−ᾱ_t)/ᾱ_t) of a discrete diffusion model: (num_levels,) float64, increasing.

    `linear` spaces β linearly from 1e-4 to 0.02 (Ho et al., Denoising diffusion probabilistic models, 2020).
    `sqrt_linear` spaces √β linearly, with β from 0.00085 to 0.012 (Rombach et al., High-resolution image synthesis
    with latent diffusion models, 2022). `cosine` has ᾱ(t) = cos²((t/T + 0.008)/1.008 · π/2), β ≤ 0.999 (Nichol,
    Dhariwal, Improved denoising diffusion probabilistic models, 2021).

    Args:
        table: `linear`, `sqrt_linear` or `cosine`.
        num_levels: T, ≥ 2.
        beta_start: first β, in (0, 1), if it is not the table's usual one; `cosine` has none.
        beta_end: last β, likewise.

    Raises:
        ConfigurationError: an argument is outside its range, or a β is given for table=cosine.
    """
    if table not in TABLES:
        raise ConfigurationError(f"table={table} is unknown: {nearest(table, TABLES)}.")
    if num_levels < 2:
        raise ConfigurationError(f"num_levels={num_levels} is not allowed: a table needs at least 2 levels.")
    ends = {k: v for k, v in {"beta_start": beta_start, "beta_end": beta_end}.items() if v is not None}
    if table == "cosine" and ends:
        raise ConfigurationError(
            f"{', '.join(ends)} cannot be set for table=cosine: its β follow from the cosine; leave them null"
            " or choose another table."
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
