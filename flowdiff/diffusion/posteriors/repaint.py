"""RePaint: replacement in which every step is repeated, so that what is missing can follow what is seen."""

from __future__ import annotations

from dataclasses import replace

from pydantic import PositiveInt
from torch import Tensor

from flowdiff.diffusion.measurements.base import Measurement
from flowdiff.diffusion.posteriors.replacement import Replacement
from flowdiff.diffusion.samplers.base import BatchDenoiser, Sampler, Step
from flowdiff.noise import BrownianPath, randn_like
from flowdiff.registry import register


@register("posterior", "repaint")
class RePaint(Replacement):
    """`replacement` in which every step is repeated: forward again from σ' to σ by fresh noise, and down once more.

    x ← x' + √(σ² − σ'²)·noise,  repeats − 1 times

    It costs `repeats` times the evaluations and takes any guidance.

    Args:
        measurement: A and σ_y.
        repeats: how often each step is made, ≥ 1; 1 is `replacement`.

    Source: Lugmayr, Danelljan, Romero, Yu, Timofte, Van Gool, RePaint: inpainting using denoising diffusion
        probabilistic models, 2022, with jumps of one step.
    """

    def __init__(self, measurement: Measurement, *, repeats: PositiveInt):
        super().__init__(measurement)
        self.repeats = repeats

    def sampler(self, sampler: Sampler) -> Sampler:
        return Repeated(sampler, self.repeats)


class Repeated(Sampler):
    """A sampler that makes each of its steps several times.

    Args:
        sampler: the steps.
        repeats: how often each is made, ≥ 1.
    """

    def __init__(self, sampler: Sampler, repeats: int):
        super().__init__(sampler.num_steps, sampler.memory)
        self.asks_for_rows = sampler.asks_for_rows
        self.inner = sampler
        self.repeats = repeats

    def step(self, denoise: BatchDenoiser, x: Tensor, at: Step) -> tuple[Tensor, Tensor]:
        reached, denoised = self.inner.step(denoise, x, at)
        for _ in range(self.repeats - 1 if at.sigma_next > 0 else 0):
            x = reached + (at.sigma**2 - at.sigma_next**2) ** 0.5 * randn_like(x, at.generator)
            again = replace(at, path=BrownianPath(x, at.generator))  # the same noise would lead to the same place
            reached, denoised = self.inner.step(denoise, x, again)
        return reached, denoised
