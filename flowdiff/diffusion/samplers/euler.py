"""Euler's method on the probability-flow ODE dx/dσ = (x − D)/σ."""

from __future__ import annotations

from pydantic import PositiveInt
from torch import Tensor

from flowdiff.diffusion.samplers.base import BatchDenoiser, Sampler, Step, euler_step
from flowdiff.registry import register


@register("sampler", "euler")
class Euler(Sampler):
    """Euler's method: first order, one denoiser call per step.

    x' = x + (σ' − σ)·(x − D)/σ

    Args:
        num_steps: number of steps, ≥ 1.

    Source: Karras, Aittala, Aila, Laine, Elucidating the design space of diffusion-based generative models, 2022.
    """

    def __init__(self, *, num_steps: PositiveInt):
        super().__init__(num_steps)

    def step(self, denoise: BatchDenoiser, x: Tensor, at: Step) -> tuple[Tensor, Tensor]:
        denoised = denoise(x, at.sigma)
        return euler_step(x, denoised, at.sigma, at.sigma_next), denoised
