"""DPM-Solver: the noise ε = (x − D)/σ, a function of λ = −ln σ, is what is held constant or expanded over a step.

    order 1    x' = x + (σ' − σ)·ε(x, σ),
    order 2    σ_m = √(σσ'),   x_m = x + (σ_m − σ)·ε(x, σ),   x' = x + (σ' − σ)·ε(x_m, σ_m):

the midpoint in λ. In variance-exploding coordinates order 1 is Euler's method, which is DDIM.
"""

from __future__ import annotations

import math

from pydantic import PositiveInt
from torch import Tensor

from flowdiff.diffusion.samplers.base import Denoise, Sampler, Step, euler_step
from flowdiff.diffusion.samplers.euler import Euler
from flowdiff.registry import register


@register("sampler", "dpm_solver_1")
class DPMSolver1(Sampler):
    """First order: `ddim`, and in these coordinates `euler`, by another name.

    num_steps ≥ 1: steps of the grid, each one denoiser call.
    Source: Lu, Zhou, Bao, Chen, Li, Zhu, DPM-Solver: a fast ODE solver for diffusion probabilistic model sampling in
    around 10 steps, 2022, equation 3.7.
    """

    def __init__(self, *, num_steps: PositiveInt):
        super().__init__(num_steps)
        self._euler = Euler(num_steps=num_steps)

    def step(self, denoise: Denoise, x: Tensor, at: Step) -> tuple[Tensor, Tensor]:
        return self._euler.step(denoise, x, at)


@register("sampler", "dpm_solver_2")
class DPMSolver2(Sampler):
    """Second order, two denoiser calls a step but one in the last (to σ' = 0, an Euler step).

    num_steps ≥ 1: steps of the grid, 2·num_steps − 1 denoiser calls.
    Source: Lu, Zhou, Bao, Chen, Li, Zhu, DPM-Solver: a fast ODE solver for diffusion probabilistic model sampling in
    around 10 steps, 2022, algorithm 1 at r₁ = ½.
    """

    def __init__(self, *, num_steps: PositiveInt):
        super().__init__(num_steps)

    def step(self, denoise: Denoise, x: Tensor, at: Step) -> tuple[Tensor, Tensor]:
        denoised = denoise(x, at.sigma)
        if at.sigma_next == 0:
            return denoised, denoised
        middle = math.sqrt(at.sigma * at.sigma_next)
        x_middle = euler_step(x, denoised, at.sigma, middle)
        slope = (x_middle - denoise(x_middle, middle)) / middle
        return x + (at.sigma_next - at.sigma) * slope, denoised
