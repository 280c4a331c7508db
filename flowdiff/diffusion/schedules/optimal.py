"""Levels where a model's own trajectories bend: few steps where they are straight, many where they are not.

A trajectory x(σ) is measured at M levels. An Euler step from σ_i to σ_j < σ_i leaves it by

    e_ij = w_j·rms ‖D_i + (σ_j/σ_i)·(x_i − D_i) − x_j‖,   w_j = spread of x at σ = 0 / spread of x at σ_j,

the curvature on the way added up, of which the share w_j is left at the end, since trajectories draw together; root
mean squares and spread are over the trajectories. Where Euler's method errs by e ~ h² one of second order errs by about
e^(3/2) ~ h³: the grid of N steps is the path from σ_max to 0 of least Σ e^(3/2), by dynamic programming in O(N·M²).
"""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from flowdiff.diffusion.schedules.base import Schedule
from flowdiff.diffusion.schedules.formulas import Exponential
from flowdiff.errors import ConfigurationError
from flowdiff.registry import register

Callback = Callable[[int, float, Tensor, Tensor], None]
Walk = Callable[[Tensor, int, Callback], Tensor]
"""(sigmas, n, callback) -> x0 (n, …): n trajectories of a model down a grid in one batch; callback(step, σ, x, D)."""


@register("schedule", "optimal")
class Optimal(Schedule):
    """The levels of least error, measured on the model that is sampled; until then even in ln σ, as `exponential`.

    sigma_min, sigma_max: the smallest and the largest level there is to choose; the last one chosen is mostly larger
    than sigma_min.  num_levels ≥ 2: M, evenly spaced in ln σ, and the most steps there can be.
    num_trajectories ≥ 2: on how many it is measured, with num_levels denoiser calls each, once for a trained model.
    Raises ConfigurationError for more steps than levels.
    Source: dynamic programming over local errors of measured trajectories as in Chen, Zhou, Wang, Shen, Lyu, On the
    trajectory regularity of ODE-based diffusion sampling, 2024; the weights w and the power of e are of flowdiff.
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
        """This schedule suited to a model.

        walk: trajectories of the model.  cache: a file for what is measured on them, read instead if it is there; it
        belongs to one state of one model.
        """
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

        # where a model knows few levels only, neighbours may be one: what was walked is what counts
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
                f"num_steps={num_steps} is not allowed: schedule=optimal chooses among {self.num_levels} levels, take"
                " at most so many steps, raise schedule.num_levels, or take schedule=karras, as good for many steps."
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
    """The path of num_steps steps from the first to the last node of least cost: num_steps + 1 indices."""
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
    """What a file holds, None if there is none or it was measured otherwise."""
    if cache is None or not cache.is_file():
        return None
    kept = json.loads(cache.read_text())
    if kept["asked"] != asked:
        return None
    rows = [[math.inf] * (len(kept["levels"]) - len(row)) + row for row in kept["errors"]]
    return torch.tensor(kept["levels"], dtype=torch.float64), torch.tensor(rows, dtype=torch.float64)


def _write(cache: Path | None, asked: list[float], levels: Tensor, errors: Tensor) -> None:
    """Keep it whole or not at all; of e the part above the diagonal."""
    if cache is None:
        return
    rows = [row[i + 1 :] for i, row in enumerate(errors.tolist())]
    partial = cache.with_name(f".{os.getpid()}.{cache.name}")
    partial.write_text(json.dumps({"asked": asked, "levels": levels.tolist(), "errors": rows}))
    partial.replace(cache)
