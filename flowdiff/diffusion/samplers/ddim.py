"""DDIM: x'_VP = √ᾱ'·D + √(1−ᾱ')·ε with ε = (x_VP − √ᾱ·D)/√(1−ᾱ).

Divided by √ᾱ' and with x = x_VP/√ᾱ, σ = √((1−ᾱ)/ᾱ) this reads x' = D + σ'·(x − D)/σ: Euler's method in
variance-exploding coordinates. What the name stands for beside that is the grid, so use it with
schedule=ddpm.
"""

from __future__ import annotations

from pydantic import PositiveInt
from torch import Tensor

from flowdiff.diffusion.samplers.base import Denoise, Sampler, Step
from flowdiff.diffusion.samplers.euler import Euler
from flowdiff.registry import register


@register("sampler", "ddim")
class DDIM(Sampler):
    """The deterministic sampler of discrete diffusion models: `euler` (`ancestral` at η = 0) by another name.

    num_steps ≥ 1: steps of the grid, each one denoiser call.
    Source: Song, Meng, Ermon, Denoising diffusion implicit models, 2021, equation 12 at σ_t = 0.
    """

    def __init__(self, *, num_steps: PositiveInt):
        super().__init__(num_steps)
        self._euler = Euler(num_steps=num_steps)

    def step(self, denoise: Denoise, x: Tensor, at: Step) -> tuple[Tensor, Tensor]:
        return self._euler.step(denoise, x, at)
