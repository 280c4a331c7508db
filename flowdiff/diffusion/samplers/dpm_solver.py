"""DPM-Solver: over a step, the noise ε = (x − D)/σ is held constant or expanded as a function of λ = −ln σ.

    order 1    x' = x + (σ' − σ)·ε(x, σ),
    order 2    σ_m = √(σσ'),   x_m = x + (σ_m − σ)·ε(x, σ),   x' = x + (σ' − σ)·ε(x_m, σ_m):

where σ_m is the midpoint in λ. In variance-exploding coordinates order 1 is Euler's method, which is DDIM.
"""

from __future__ import annotations

import math

from pydantic import PositiveInt
from torch import Tensor

from flowdiff.diffusion.samplers.base import BatchDenoiser, Sampler, Step, euler_step
from flowdiff.diffusion.samplers.euler import Euler
from flowdiff.registry import register


@register("sampler", "dpm_solver_1")
class DPMSolver1(Sampler):
    """DPM-Solver of first order: `ddim` and `euler` under another name, one denoiser call per step.

    x' = x + (σ' − σ)·(x − D)/σ

    Args:
        num_steps: number of steps, ≥ 1.

    Source: Lu, Zhou, Bao, Chen, Li, Zhu, DPM-Solver: a fast ODE solver for diffusion probabilistic model sampling in
    around 10 steps, 2022, equation 3.7.
    """

    def __init__(self, *, num_steps: PositiveInt):
        super().__init__(num_steps)
        self._euler = Euler(num_steps=num_steps)

    def step(self, denoise: BatchDenoiser, x: Tensor, at: Step) -> tuple[Tensor, Tensor]:
        return self._euler.step(denoise, x, at)


@register("sampler", "dpm_solver_2")
class DPMSolver2(Sampler):
    """DPM-Solver of second order: two denoiser calls per step, one in the last step, to σ' = 0, which is an Euler step.

    x' = x + (σ' − σ)·ε(x_m, σ_m),  σ_m = √(σσ'),  x_m = x + (σ_m − σ)·ε(x, σ),  ε = (x − D)/σ

    Args:
        num_steps: number of steps, ≥ 1; 2·num_steps − 1 denoiser calls.

    Source: Lu, Zhou, Bao, Chen, Li, Zhu, DPM-Solver: a fast ODE solver for diffusion probabilistic model sampling in
    around 10 steps, 2022, algorithm 1 at r₁ = ½.
    """

    def __init__(self, *, num_steps: PositiveInt):
        super().__init__(num_steps)

    def step(self, denoise: BatchDenoiser, x: Tensor, at: Step) -> tuple[Tensor, Tensor]:
        denoised = denoise(x, at.sigma)
        if at.sigma_next == 0:
            return denoised, denoised
        middle = math.sqrt(at.sigma * at.sigma_next)
        x_middle = euler_step(x, denoised, at.sigma, middle)
        slope = (x_middle - denoise(x_middle, middle)) / middle
        return x + (at.sigma_next - at.sigma) * slope, denoised
