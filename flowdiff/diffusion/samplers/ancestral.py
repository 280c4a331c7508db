"""Ancestral sampling: step down below σ', then add noise up to σ'.

    σ_up = min(σ', η·√(σ'²(σ² − σ'²)/σ²)),   σ_down = √(σ'² − σ_up²),   x' = D + (σ_down/σ)·(x − D) + σ_up·z.

η = 1 draws x' from the posterior q(x' | x, x0 = D) of the forward process, as DDPM does; η = 0 is Euler's method, which
is DDIM.
"""

from __future__ import annotations

import math

from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from flowdiff.diffusion.samplers.base import BatchDenoiser, Sampler, Step, euler_step
from flowdiff.noise import randn_like
from flowdiff.registry import register


@register("sampler", "ancestral")
class Ancestral(Sampler):
    """Step below the next noise level, then add noise up to it: first order, one denoiser call per step.

    x' = D + (σ_down/σ)·(x − D) + σ_up·z,  z ~ N(0, I),  σ_up = min(σ', η·σ'·√(1 − σ'²/σ²)),  σ_down = √(σ'² − σ_up²)

    Args:
        num_steps: number of steps, ≥ 1.
        eta: η, amount of noise, ≥ 0; 0 is `euler` and draws none, 1 draws from DDPM's posterior.

    Source: Song, Meng, Ermon, Denoising diffusion implicit models, 2021, equations 12 and 16; in these coordinates in
    k-diffusion (Crowson).
    """

    def __init__(self, *, num_steps: PositiveInt, eta: NonNegativeFloat):
        super().__init__(num_steps)
        self.eta = eta

    def step(self, denoise: BatchDenoiser, x: Tensor, at: Step) -> tuple[Tensor, Tensor]:
        denoised = denoise(x, at.sigma)
        # (σ − σ')(σ + σ') rather than σ² − σ'² keeps a short step accurate
        shrinkage = math.sqrt((at.sigma - at.sigma_next) * (at.sigma + at.sigma_next)) / at.sigma
        sigma_up = at.sigma_next * min(1.0, self.eta * shrinkage)
        sigma_down = math.sqrt((at.sigma_next - sigma_up) * (at.sigma_next + sigma_up))
        x_next = euler_step(x, denoised, at.sigma, sigma_down)
        if sigma_up > 0:
            x_next = x_next + sigma_up * randn_like(x, at.generator)
        return x_next, denoised
