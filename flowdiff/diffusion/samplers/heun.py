"""Heun's method on the probability-flow ODE, with churn: noise is added before a step and removed by the step.

    γ = min(S_churn/N, √2 − 1) if S_min ≤ σ ≤ S_max else 0,
    σ̂ = σ + γσ,                  x̂ = x + √(σ̂² − σ²)·S_noise·z,
    d = (x̂ − D(x̂, σ̂))/σ̂,       x̃ = x̂ + (σ' − σ̂)·d,
    d' = (x̃ − D(x̃, σ'))/σ',     x' = x̂ + (σ' − σ̂)·(d + d')/2.

Without churn (γ = 0) σ̂ = σ, x̂ = x.
"""

from __future__ import annotations

import math

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from flowdiff.diffusion.samplers.base import BatchDenoiser, Sampler, Step, euler_step
from flowdiff.errors import ConfigurationError
from flowdiff.noise import randn_like
from flowdiff.registry import register


@register("sampler", "heun")
class Heun(Sampler):
    """EDM's sampler: second order, two denoiser calls per step, one in the last, to σ' = 0, which is an Euler step.

    x' = x̂ + (σ' − σ̂)·(d(x̂, σ̂) + d(x̃, σ'))/2,  x̃ = x̂ + (σ' − σ̂)·d(x̂, σ̂),  d = (x − D)/σ,
    σ̂ = (1 + min(s_churn/N, √2 − 1))·σ,  x̂ = x + √(σ̂² − σ²)·s_noise·z,  z ~ N(0, I)

    Args:
        num_steps: N, number of steps, ≥ 1; 2·num_steps − 1 denoiser calls.
        s_churn: total amount of noise added, ≥ 0; 0 is the ODE and draws no noise.
        s_min: smallest σ at which noise is added, ≥ 0, in data units.
        s_max: largest σ at which noise is added, ≥ s_min, in data units.
        s_noise: scale of that noise, > 0.

    Raises:
        ConfigurationError: s_min is above s_max.

    Source: Karras, Aittala, Aila, Laine, Elucidating the design space of diffusion-based generative models, 2022,
    algorithm 2.
    """

    def __init__(
        self,
        *,
        num_steps: PositiveInt,
        s_churn: NonNegativeFloat,
        s_min: NonNegativeFloat,
        s_max: NonNegativeFloat,
        s_noise: PositiveFloat,
    ):
        super().__init__(num_steps)
        if s_min > s_max:
            raise ConfigurationError(f"s_min={s_min:g} is above s_max={s_max:g}: set s_min ≤ s_max.")
        self.s_churn = s_churn
        self.s_min = s_min
        self.s_max = s_max
        self.s_noise = s_noise

    def step(self, denoise: BatchDenoiser, x: Tensor, at: Step) -> tuple[Tensor, Tensor]:
        x_hat, sigma_hat = self._churned(x, at)
        denoised = denoise(x_hat, sigma_hat)
        x_next = euler_step(x_hat, denoised, sigma_hat, at.sigma_next)
        if at.sigma_next > 0:
            slope = (x_hat - denoised) / sigma_hat
            slope_next = (x_next - denoise(x_next, at.sigma_next)) / at.sigma_next
            x_next = x_hat + (at.sigma_next - sigma_hat) * (slope + slope_next) / 2
        return x_next, denoised

    def _churned(self, x: Tensor, at: Step) -> tuple[Tensor, float]:
        """x̂ and σ̂, which are x and σ where γ = 0."""
        gamma = min(self.s_churn / at.count, math.sqrt(2) - 1)
        if gamma == 0 or not self.s_min <= at.sigma <= self.s_max:
            return x, at.sigma
        sigma_hat = at.sigma * (1 + gamma)
        noise = randn_like(x, at.generator)
        return x + math.sqrt(sigma_hat**2 - at.sigma**2) * self.s_noise * noise, sigma_hat
