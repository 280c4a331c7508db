"""DDIM: x'_VP = √ᾱ'·D + √(1−ᾱ')·ε with ε = (x_VP − √ᾱ·D)/√(1−ᾱ).

Divided by √ᾱ' and with x = x_VP/√ᾱ, σ = √((1−ᾱ)/ᾱ) this reads x' = D + σ'·(x − D)/σ: Euler's method in
variance-exploding coordinates. The name also implies the grid of a discrete model, so use it with schedule=ddpm.
"""

from __future__ import annotations

from pydantic import PositiveInt
from torch import Tensor

from flowdiff.diffusion.samplers.base import BatchDenoiser, Sampler, Step
from flowdiff.diffusion.samplers.euler import Euler
from flowdiff.registry import register


@register("sampler", "ddim")
class DDIM(Sampler):
    """The deterministic sampler of discrete diffusion models: `euler` under another name, one denoiser call per step.

    x' = D + (σ'/σ)·(x − D)

    Args:
        num_steps: number of steps, ≥ 1.

    Source: Song, Meng, Ermon, Denoising diffusion implicit models, 2021, equation 12 at σ_t = 0.
    """

    def __init__(self, *, num_steps: PositiveInt):
        super().__init__(num_steps)
        self._euler = Euler(num_steps=num_steps)

    def step(self, denoise: BatchDenoiser, x: Tensor, at: Step) -> tuple[Tensor, Tensor]:
        return self._euler.step(denoise, x, at)
