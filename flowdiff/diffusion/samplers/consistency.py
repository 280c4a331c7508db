"""Multistep consistency sampling: map x to the end of its trajectory, add noise up to the next level, repeat."""

from __future__ import annotations

import math

from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from flowdiff.diffusion.samplers.base import BatchDenoiser, Sampler, Step
from flowdiff.noise import randn_like
from flowdiff.registry import Requirement, register

NEEDS_CONSISTENCY = Requirement(
    "scaling",
    fits=lambda scaling, node: node["name"] == "consistency",
    reason="this sampler takes a consistency function and not a denoiser",
    remedy="set scaling=consistency loss=consistency, or sampler=ancestral",
)


@register("sampler", "consistency", requires=[NEEDS_CONSISTENCY])
class Consistency(Sampler):
    """Few steps with a consistency function f, one call each.

    x' = f(x, σ) + √(σ'² − σ_min²)·z,  z ~ N(0, I);  the last step gives f(x, σ)

    One step is enough. Each further step has a level of its own: the schedule's sigma_min is the last of them, so set
    it to 0.8 or so for two steps.

    Args:
        num_steps: number of steps, ≥ 1.
        sigma_min: σ_min, that of scaling=consistency, > 0, in data units.

    Source: Song, Dhariwal, Chen, Sutskever, Consistency models, 2023, algorithm 1.
    """

    of_consistency = True

    def __init__(self, *, num_steps: PositiveInt, sigma_min: PositiveFloat):
        super().__init__(num_steps)
        self.sigma_min = sigma_min

    def step(self, denoise: BatchDenoiser, x: Tensor, at: Step) -> tuple[Tensor, Tensor]:
        end = denoise(x, at.sigma)
        variance = at.sigma_next**2 - self.sigma_min**2
        return (end + math.sqrt(variance) * randn_like(x, at.generator) if variance > 0 else end), end
