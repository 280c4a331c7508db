"""DDPM: draw x' from the posterior q(x' | x, x0 = D) of the forward process.

Its variance is β̃ = (1−ᾱ')/(1−ᾱ)·(1 − ᾱ/ᾱ') in variance-preserving units. In variance-exploding units, with
σ² = (1−ᾱ)/ᾱ, it is β̃/ᾱ' = σ'²(σ² − σ'²)/σ², which is σ_up² of `ancestral` at η = 1.
"""

from __future__ import annotations

from pydantic import PositiveInt
from torch import Tensor

from flowdiff.diffusion.samplers.ancestral import Ancestral
from flowdiff.diffusion.samplers.base import BatchDenoiser, Sampler, Step
from flowdiff.registry import register


@register("sampler", "ddpm")
class DDPM(Sampler):
    """The stochastic sampler of discrete diffusion models: `ancestral` at η = 1, one denoiser call per step.

    x' ~ q(x' | x, x0 = D),  the posterior of the forward process, with the smaller of DDPM's two variances, β̃

    Use it with schedule=ddpm and many steps.

    Args:
        num_steps: number of steps, ≥ 1.

    Source: Ho, Jain, Abbeel, Denoising diffusion probabilistic models, 2020, equations 6 and 7 (σ_t² = β̃_t).
    """

    def __init__(self, *, num_steps: PositiveInt):
        super().__init__(num_steps)
        self._ancestral = Ancestral(num_steps=num_steps, eta=1.0)

    def step(self, denoise: BatchDenoiser, x: Tensor, at: Step) -> tuple[Tensor, Tensor]:
        return self._ancestral.step(denoise, x, at)
