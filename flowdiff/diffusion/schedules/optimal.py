"""Levels chosen by how a model's own trajectories bend: few steps where they are straight, many where they are not.

Trajectories x(σ) are measured at M levels. An Euler step from σ_i to σ_j < σ_i departs from them by

    e_ij = w_j·rms ‖D_i + (σ_j/σ_i)·(x_i − D_i) − x_j‖,   w_j = spread of x at σ = 0 / spread of x at σ_j,

the curvature accumulated over the step. The factor w_j is the fraction of this error that remains at σ = 0, because
trajectories converge. Root mean square and spread are taken over the trajectories. Where Euler's method has the error
e ~ h², a method of second order has about e^(3/2) ~ h³: the grid of N steps is the path from σ_max to 0 with the
smallest Σ e^(3/2), found by dynamic programming in O(N·M²).
"""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from flowdiff.diffusion.schedules.base import Schedule, Walk
from flowdiff.diffusion.schedules.formulas import Exponential
from flowdiff.errors import ConfigurationError
from flowdiff.registry import register
from flowdiff.runs.files import write_whole


@register("schedule", "optimal")
class Optimal(Schedule):
    """The levels with the smallest error on the trajectories of the model that is sampled.

    σ_0 … σ_N = argmin Σ_i e(σ_i, σ_{i+1})^(3/2),  e the error of an Euler step, measured by `fitted`

    Before it is fitted, its levels are those of `exponential`. The weights w in e and the power 3/2 are flowdiff's own.

    Args:
        sigma_min: smallest level to choose from, > 0, in data units; the last level chosen is usually larger.
        sigma_max: largest level, > sigma_min, finite, in data units.
        num_levels: M, number of levels to choose from, evenly spaced in ln σ, ≥ 2; also the largest number of steps.
        num_trajectories: number of trajectories measured, ≥ 2; each takes num_levels denoiser calls, once per model.

    Raises:
        ConfigurationError: sigma_min is not below sigma_max, one of them is infinite, or a grid of more than
            num_levels steps is asked for.

    Source: Chen, Zhou, Wang, Shen, Lyu, On the trajectory regularity of ODE-based diffusion sampling, 2024.
    """

    def __init__(
        self,
        *,
        sigma_min: PositiveFloat,
        sigma_max: PositiveFloat,
        num_levels: Annotated[int, Field(ge=2)],
        num_trajectories: Annotated[int, Field(ge=2)],
    ):
        super().__init__(sigma_min, sigma_max)
        self.num_levels = num_levels
        self.num_trajectories = num_trajectories
        self._even = Exponential(sigma_min=sigma_min, sigma_max=sigma_max)
        self._measured: tuple[Tensor, Tensor] | None = None  # levels (M+1,) down to 0, e (M+1, M+1)

    def fitted(self, walk: Walk, cache: Path | None = None) -> Optimal:
        asked = [self.sigma_min, self.sigma_max, self.num_levels, self.num_trajectories]
        measured = _read(cache, asked)
        if measured is None:
            measured = self._measure(walk)
            _write(cache, asked, *measured)
        fitted = copy.copy(self)
        fitted._measured = measured
        return fitted

    def _measure(self, walk: Walk) -> tuple[Tensor, Tensor]:
        sigmas, xs, ds = [], [], []

        def keep(step: int, sigma: float, x: Tensor, denoised: Tensor) -> None:
            sigmas.append(sigma)
            xs.append(x.flatten(1))
            ds.append(denoised.flatten(1))

        # a model of discrete levels rounds its grid and may merge neighbours: use the levels that were visited
        xs.append(walk(self._even(self.num_levels), self.num_trajectories, keep).flatten(1))
        levels = torch.tensor([*sigmas, 0.0], dtype=torch.float64)
        spread = torch.stack([(x - x.mean(0)).double().norm().cpu() for x in xs])
        errors = torch.full((len(levels), len(levels)), math.inf, dtype=torch.float64)
        for i, (x, denoised) in enumerate(zip(xs, ds, strict=False)):
            for j in range(i + 1, len(levels)):
                deviation = torch.lerp(denoised, x, (levels[j] / levels[i]).item()) - xs[j]
                errors[i, j] = deviation.double().norm().cpu() * spread[-1] / spread[j]
        return levels, errors / math.sqrt(xs[0].numel())

    def _levels(self, num_steps: int, sigma_max: float) -> Tensor:
        if num_steps > self.num_levels:
            raise ConfigurationError(
                f"num_steps={num_steps} is not allowed: schedule=optimal chooses among {self.num_levels} levels; take"
                " at most that many steps, raise schedule.num_levels, or set schedule=karras, as good for many steps."
            )
        if self._measured is None:
            return self._even(num_steps, sigma_max)[:-1]
        levels, errors = self._measured
        first = int((levels >= sigma_max * (1 - 1e-9)).sum()) - 1  # the nearest at or above the start
        below, cost = levels[first:], errors[first:, first:] ** 1.5
        chosen = below[_cheapest(cost, min(num_steps, len(below) - 1))[:-1]]
        chosen[0] = sigma_max
        return chosen


def _cheapest(cost: Tensor, num_steps: int) -> list[int]:
    """The cheapest path of num_steps steps from the first node to the last: num_steps + 1 indices."""
    spent = torch.full((len(cost),), math.inf, dtype=cost.dtype)
    spent[0] = 0
    origins = []
    for _ in range(num_steps):
        spent, origin = (spent[:, None] + cost).min(0)
        origins.append(origin.tolist())
    path = [len(cost) - 1]
    for origin in reversed(origins):
        path.append(origin[path[-1]])
    return path[::-1]


def _read(cache: Path | None, asked: list[float]) -> tuple[Tensor, Tensor] | None:
    """Levels and errors from the cache file; None if it does not exist or was made with other settings."""
    if cache is None or not cache.is_file():
        return None
    kept = json.loads(cache.read_text(encoding="utf-8"))
    if kept["asked"] != asked:
        return None
    rows = [[math.inf] * (len(kept["levels"]) - len(row)) + row for row in kept["errors"]]
    return torch.tensor(kept["levels"], dtype=torch.float64), torch.tensor(rows, dtype=torch.float64)


def _write(cache: Path | None, asked: list[float], levels: Tensor, errors: Tensor) -> None:
    """Write the cache file: the settings, the levels and the part of the errors above the diagonal."""
    rows = [row[i + 1 :] for i, row in enumerate(errors.tolist())]
    if cache is None or not all(math.isfinite(error) for row in rows for error in row):  # of a diverged model
        return
    write_whole(cache, json.dumps({"asked": asked, "levels": levels.tolist(), "errors": rows}, allow_nan=False))
