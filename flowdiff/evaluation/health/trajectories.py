"""Trajectories of a run's own sampler: where it asks D, and at which noise levels."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from flowdiff.diffusion.model import ConditionedDenoiser
from flowdiff.models.conditioning import Conditioning

TRAJECTORY_SEED = 3


class AtLevel(NamedTuple):
    """The points x (n, …) of n trajectories at the beginning of a step, at the noise level sigma; cond is theirs."""

    sigma: float
    x: Tensor
    cond: Conditioning | None


def trajectories_of(denoiser: ConditionedDenoiser, n: int) -> list[AtLevel]:
    """n trajectories as the model samples by default, every class or example in turn; σ falls."""
    cond = denoiser.conditions(n)(range(n))
    steps: list[AtLevel] = []
    denoiser.sample(
        n,
        seed=TRAJECTORY_SEED,
        batch_size=n,
        callback=lambda step, sigma, x, D: steps.append(AtLevel(sigma, x, cond)),
    )
    return steps
