"""DPM-Solver++(2M): an Euler step with D extrapolated to the middle of the step, in λ = −ln σ.

    h = λ' − λ = ln(σ/σ'),   h₋ = ln(σ₋/σ),   D̂ = D + (h/2h₋)·(D − D₋),   x' = D̂ + (σ'/σ)·(x − D̂),

where ₋ marks the step before. The exact solution is x' = (σ'/σ)·x + σ'∫ e^λ D dλ; D̂ is D to first order in λ
at its middle.
"""

from __future__ import annotations

import math

from pydantic import PositiveInt
from torch import Tensor

from flowdiff.registry import register
from flowdiff.samplers.base import Denoise, Sampler, Step, euler_step

# below so many steps the last one is of first order: extrapolating over long steps leaves artefacts
FEW_STEPS = 15


@register("sampler", "dpmpp_2m")
class DPMpp2M(Sampler):
    """x' = D̂ + (σ'/σ)·(x − D̂): second order, one denoiser call a step, multistep.

    num_steps ≥ 1: steps of the grid. The first step has no D₋ and the one to σ' = 0 has h = ∞: both are Euler
    steps; so is the last one of fewer than 15.
    Source: Lu, Zhou, Bao, Chen, Li, Zhu, DPM-Solver++: fast solver for guided sampling of diffusion
    probabilistic models, 2022, algorithm 2.
    """

    def __init__(self, *, num_steps: PositiveInt):
        super().__init__(num_steps)

    def step(self, denoise: Denoise, x: Tensor, at: Step) -> tuple[Tensor, Tensor]:
        denoised = denoise(x, at.sigma)
        last_of_few = at.index == at.count - 1 and at.count < FEW_STEPS
        if at.previous is None or at.sigma_next == 0 or last_of_few:
            return euler_step(x, denoised, at.sigma, at.sigma_next), denoised
        sigma_before, denoised_before = at.previous
        ratio = math.log(at.sigma / at.sigma_next) / math.log(sigma_before / at.sigma)
        extrapolated = denoised + ratio / 2 * (denoised - denoised_before)
        return euler_step(x, extrapolated, at.sigma, at.sigma_next), denoised
