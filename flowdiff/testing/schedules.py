"""The laws of a schedule."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from flowdiff.diffusion.schedules.base import Schedule
from flowdiff.testing.compare import require, require_refused


def check_schedule(schedule: Schedule) -> None:
    """Hold a schedule to every law of a schedule.

    For 1 to 60 steps the grid decreases from sigma_max to 0; it can start at a lower level; a start at or below
    sigma_min is one step; invalid numbers of steps and starts are refused.

    Raises:
        AssertionError: the first law that is broken, by how much and where.
    """
    for num_steps in (1, 2, 3, 18, 60):
        grid_decreases_to_zero(schedule, num_steps)
    for num_steps in (1, 2, 10):
        grid_can_start_lower(schedule, num_steps, 1.7 if schedule.sigma_max > 1.7 else schedule.sigma_max / 2)
    for share in (1.0, 0.3):
        start_at_the_bottom_is_one_step(schedule, share)
    invalid_steps_and_starts_are_refused(schedule)


def grid_decreases_to_zero(schedule: Schedule, num_steps: int) -> None:
    """schedule(N) is (N+1,) float64 from sigma_max down to 0, and no level but the last is below sigma_min."""
    sigmas = schedule(num_steps)
    _is_grid(sigmas, num_steps, schedule.sigma_max)
    law = "the level before 0 is at least sigma_min"
    detail = f"it is {float(sigmas[-2])}, and sigma_min is {schedule.sigma_min}"
    require(sigmas[-2] >= schedule.sigma_min * (1 - 1e-12), law, detail)


def grid_can_start_lower(schedule: Schedule, num_steps: int, sigma_max: float = 1.7) -> None:
    """schedule(N, sigma_max) is a grid from sigma_max down to 0."""
    _is_grid(schedule(num_steps, sigma_max=sigma_max), num_steps, sigma_max)


def start_at_the_bottom_is_one_step(schedule: Schedule, share: float = 1.0) -> None:
    """A start at `share` ≤ 1 times sigma_min leaves one step, to 0."""
    start = share * schedule.sigma_min
    found = schedule(10, sigma_max=start).tolist()
    require(found == [start, 0], f"a start at {share}·sigma_min is one step", f"the grid is {found}")


def invalid_steps_and_starts_are_refused(schedule: Schedule) -> None:
    """There is at least one step, and the start is in (0, sigma_max]."""
    require_refused(partial(schedule, 0), "num_steps=0 is refused", "num_steps=0 ")
    for start in (0.0, -1.0, schedule.sigma_max * 1.01, float("nan")):
        law = f"a start at {start} is refused"
        require_refused(partial(schedule, 5, sigma_max=start), law, "a start at sigma=")


def _is_grid(sigmas: Tensor, num_steps: int, sigma_max: float) -> None:
    law = f"a grid of {num_steps} steps has shape ({num_steps + 1},) and type float64"
    require(sigmas.shape == (num_steps + 1,), law, f"its shape is {tuple(sigmas.shape)}")
    require(sigmas.dtype == torch.float64, law, f"its type is {sigmas.dtype}")
    first, last = float(sigmas[0]), float(sigmas[-1])
    require(first == sigma_max, "a grid starts at sigma_max", f"it starts at {first} instead of {sigma_max}")
    require(last == 0, "a grid ends in 0", f"it ends in {last}")
    rises = (sigmas.diff() >= 0).nonzero().flatten().tolist()
    require(not rises, "a grid decreases", f"{num_steps} steps do not decrease after positions {rises}")
