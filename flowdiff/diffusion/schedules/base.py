"""What every schedule is: a grid of noise levels between two ends, for any number of steps."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from flowdiff.errors import ConfigurationError


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
        table or among the levels of `optimal` for no more than there are below it.
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
        levels = self._levels(num_steps, top) if top > self.sigma_min else torch.tensor([top], dtype=torch.float64)
        if math.isclose(levels[0], top, rel_tol=1e-9):
            levels[0] = top  # exact, where a formula gives it up to rounding
        return torch.cat([levels, levels.new_zeros(1)])

    @abstractmethod
    def _levels(self, num_steps: int, sigma_max: float) -> Tensor:
        """The levels before the final 0: (num_steps,) float64, down from sigma_max > self.sigma_min."""


def check_range(sigma_min: float, sigma_max: float) -> None:
    """Raise ConfigurationError unless 0 < sigma_min < sigma_max < ∞."""
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ConfigurationError(
            f"sigma_min={sigma_min:g} and sigma_max={sigma_max:g} are not allowed: take"
            " 0 < sigma_min < sigma_max, both finite."
        )
