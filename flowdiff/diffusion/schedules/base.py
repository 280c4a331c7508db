"""The base class of schedules: a grid of noise levels between two ends, for any number of steps."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from flowdiff.errors import ConfigurationError

Callback = Callable[[int, float, Tensor, Tensor], None]
"""(step, σ, x, D): called in every step of a sampler with the x it started from and the D found there."""

Walk = Callable[[Tensor, int, Callback], Tensor]
"""(sigmas, n, callback) → x0 (n, …): n trajectories of a model down a grid, in one batch."""


class Schedule(ABC):
    """A grid of noise levels from `sigma_max` to `sigma_min` and then 0, for any number of steps.

    Args:
        sigma_min: smallest noise level before the final 0, > 0, in data units.
        sigma_max: largest noise level, > sigma_min, finite, in data units.

    Raises:
        ConfigurationError: sigma_min is not below sigma_max, or one of them is infinite.
    """

    def __init__(self, sigma_min: float, sigma_max: float):
        check_range(sigma_min, sigma_max)
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max

    def __call__(self, num_steps: int, sigma_max: float | None = None) -> Tensor:
        """The grid of `num_steps` steps: (num_steps + 1,) float64 on the CPU, decreasing, last entry 0.

        The grid has fewer steps in two cases. A start at or below self.sigma_min leaves room for a single step,
        (sigma_max, 0). A start low in a `ddpm` table, or among the levels of `optimal`, leaves as many steps as there
        are levels below it.

        Args:
            num_steps: number of steps, ≥ 1.
            sigma_max: first level, in (0, self.sigma_max]; by default self.sigma_max.

        Raises:
            ConfigurationError: num_steps is below 1, or sigma_max is outside its range.
        """
        if num_steps < 1:
            raise ConfigurationError(f"num_steps={num_steps} is not allowed: a sampler needs at least 1 step.")
        top = self.sigma_max if sigma_max is None else float(sigma_max)
        if not 0 < top <= self.sigma_max:
            raise ConfigurationError(
                f"a start at sigma={top:g} is not allowed: it has to be above 0 and at most the schedule's"
                f" sigma_max={self.sigma_max:g}."
            )
        levels = self._levels(num_steps, top) if top > self.sigma_min else torch.tensor([top], dtype=torch.float64)
        if math.isclose(levels[0], top, rel_tol=1e-9):
            levels[0] = top  # a formula gives it up to rounding only
        return torch.cat([levels, levels.new_zeros(1)])

    def fitted(self, walk: Walk, cache: Path | None = None) -> Schedule:
        """This schedule fitted to a model. The default, for schedules that do not depend on a model, returns self.

        Args:
            walk: makes trajectories of the model, to measure.
            cache: file that keeps the measurement; it is read instead of measuring again. It belongs to one state of
                one model.
        """
        return self

    @abstractmethod
    def _levels(self, num_steps: int, sigma_max: float) -> Tensor:
        """The levels before the final 0, from sigma_max > self.sigma_min down: (num_steps,) float64."""


def check_range(sigma_min: float, sigma_max: float) -> None:
    """Raise ConfigurationError unless 0 < sigma_min < sigma_max < ∞."""
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ConfigurationError(
            f"sigma_min={sigma_min:g} and sigma_max={sigma_max:g} are not allowed: set"
            " 0 < sigma_min < sigma_max, both finite."
        )
