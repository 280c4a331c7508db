"""Linear multistep method (Adams–Bashforth) on any grid: d = (x − D)/σ is extrapolated as a polynomial in σ.

    x' = x + Σ_j c_j·d_j,   c_j = ∫ Π_{k≠j} (s − σ_k)/(σ_j − σ_k) ds   from σ to σ',

where j and k run over this step and the order − 1 steps before it. The polynomials have degree 3 at most, which the
two-point Gauss–Legendre rule integrates exactly.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field, PositiveInt
from torch import Tensor

from flowdiff.diffusion.samplers.base import BatchDenoiser, Sampler, Step, Visit
from flowdiff.registry import register


@register("sampler", "lms")
class LMS(Sampler):
    """Linear multistep method (Adams–Bashforth) in σ: one denoiser call per step.

    x' = x + Σ_j c_j·d_j,  d = (x − D)/σ,  j = 1 … order;  c_j integrates the polynomial through the d_j from σ to σ'

    The first steps know fewer d: the first is an Euler step, the second has order 2, and so on. The step to σ' = 0 is
    x' = D.

    Args:
        num_steps: number of steps, ≥ 1.
        order: number of d that a step uses, 1 … 4.

    Source: Zhang, Chen, Fast sampling of diffusion models with exponential integrator, 2023 (ρAB); in these
    coordinates in k-diffusion (Crowson).
    """

    def __init__(self, *, num_steps: PositiveInt, order: Annotated[int, Field(ge=1, le=4)]):
        super().__init__(num_steps, memory=order - 1)
        self.order = order

    def step(self, denoise: BatchDenoiser, x: Tensor, at: Step) -> tuple[Tensor, Tensor]:
        denoised = denoise(x, at.sigma)
        if at.sigma_next == 0:
            return denoised, denoised
        visits = [Visit(at.sigma, x, denoised), *at.past]
        x_next = x
        for visit, c in zip(visits, coefficients([v.sigma for v in visits], at.sigma_next), strict=True):
            x_next = x_next + c / visit.sigma * (visit.x - visit.denoised)
        return x_next, denoised


def coefficients(sigmas: list[float], sigma_next: float) -> list[float]:
    """c_j for d known at `sigmas`, at most 4; the step begins at the first of them."""
    middle, half = (sigmas[0] + sigma_next) / 2, (sigma_next - sigmas[0]) / 2
    points = [middle - half / math.sqrt(3), middle + half / math.sqrt(3)]

    def basis(j: int, s: float) -> float:
        return math.prod((s - sigma) / (sigmas[j] - sigma) for k, sigma in enumerate(sigmas) if k != j)

    return [half * sum(basis(j, s) for s in points) for j in range(len(sigmas))]
