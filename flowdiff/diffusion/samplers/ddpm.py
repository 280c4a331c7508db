"""DDPM: draw x' from the posterior q(x' | x, x0 = D) of the forward process.

Its variance, β̃ = (1−ᾱ')/(1−ᾱ)·(1 − ᾱ/ᾱ') in variance-preserving units, is β̃/ᾱ' = σ'²(σ² − σ'²)/σ² in
variance-exploding ones (σ² = (1−ᾱ)/ᾱ): σ_up² of `ancestral` at η = 1.
"""

from __future__ import annotations

from pydantic import PositiveInt
from torch import Tensor

from flowdiff.diffusion.samplers.ancestral import Ancestral
from flowdiff.diffusion.samplers.base import Denoise, Sampler, Step
from flowdiff.registry import register


@register("sampler", "ddpm")
class DDPM(Sampler):
    """The stochastic sampler of discrete diffusion models, with the smaller of its two variances.

    It is `ancestral` at η = 1.  num_steps ≥ 1: steps of the grid, each one denoiser call; use it with
    schedule=ddpm and many steps.
    Source: Ho, Jain, Abbeel, Denoising diffusion probabilistic models, 2020, equations 6 and 7 (σ_t² = β̃_t).
    """

    def __init__(self, *, num_steps: PositiveInt):
        super().__init__(num_steps)
        self._ancestral = Ancestral(num_steps=num_steps, eta=1.0)

    def step(self, denoise: Denoise, x: Tensor, at: Step) -> tuple[Tensor, Tensor]:
        return self._ancestral.step(denoise, x, at)
