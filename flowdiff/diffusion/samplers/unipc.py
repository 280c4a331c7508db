"""UniPC: a multistep predictor, and a corrector that needs no denoiser call of its own.

With λ = −ln σ, h = ln(σ/σ') and r_k = (λ_k − λ)/h for the earlier steps (r_k < 0), both are Euler steps towards

    D̂ = D + (B/(1 − e^(−h)))·Σ_k ρ_k·(D_k − D)/r_k,

where k runs over the earlier steps and, in the corrector, also over the new D' at its end (r = 1). The ρ solve

    Σ_k r_k^(i−1)·ρ_k = b_i = i!·φ_(i+1)/B,   i = 1 … number of unknowns,

with φ_1 = 1 − e^(−h), φ_(i+1) = 1/i! − φ_i/h and B = h (`bh1`) or φ_1 (`bh2`). The next step evaluates D' at the
predictor's x' anyway; it begins by moving x' to the corrector's point:

    x' ← x' + (1 − σ'/σ)·(D̂_corrector − D̂_predictor).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from flowdiff.diffusion.samplers.base import BatchDenoiser, Sampler, Step, Visit, euler_step
from flowdiff.registry import register


@register("sampler", "unipc")
class UniPC(Sampler):
    """Multistep predictor with a corrector at no further cost: order `order` + 1, one denoiser call per step.

    x' = D̂ + (σ'/σ)·(x − D̂),  D̂ = D + (B/(1 − e^(−h)))·Σ_k ρ_k·(D_k − D)/r_k

    Args:
        num_steps: number of steps, ≥ 1; the order rises from 1 in the first steps and falls to 1 in the last ones.
        order: order of the predictor, 1 … 3.
        variant: B(h), `bh1` (B = h) or `bh2` (B = 1 − e^(−h)); bh2 suits few steps and strong guidance.

    Source: Zhao, Bai, Rao, Zhou, Lu, UniPC: a unified predictor-corrector framework for fast sampling of diffusion
    models, 2023, the form that expands D.
    """

    def __init__(
        self,
        *,
        num_steps: PositiveInt,
        order: Annotated[int, Field(ge=1, le=3)],
        variant: Literal["bh1", "bh2"],
    ):
        super().__init__(num_steps, memory=order)
        self.order = order
        self.variant = variant

    def step(self, denoise: BatchDenoiser, x: Tensor, at: Step) -> tuple[Tensor, Tensor]:
        here = Visit(at.sigma, x, denoise(x, at.sigma))
        past = list(at.past)
        if past:
            last, earlier = past[0], past[1 : self._order(at.index - 1, at.count)]
            predicted = self._mean(last, earlier, at.sigma)
            corrected = self._mean(last, [*earlier, here], at.sigma)
            x = x + (1 - at.sigma / last.sigma) * (corrected - predicted)
        towards = self._mean(here, past[: self._order(at.index, at.count) - 1], at.sigma_next)
        return euler_step(x, towards, at.sigma, at.sigma_next), here.denoised

    def _order(self, index: int, count: int) -> int:
        return min(self.order, 1 + index, count - index)

    def _mean(self, start: Visit, others: list[Visit], sigma_next: float) -> Tensor:
        """D̂ of the step from `start` to sigma_next, from D at `start` and at `others`."""
        if not others:
            return start.denoised
        h = math.log(start.sigma / sigma_next)
        places = [math.log(start.sigma / other.sigma) / h for other in others]
        mean = start.denoised
        for other, r, weight in zip(others, places, weights(places, h, self.variant), strict=True):
            mean = mean + weight / r * (other.denoised - start.denoised)
        return mean


def weights(places: list[float], h: float, variant: str) -> list[float]:
    """ρ_k·B/(1 − e^(−h)) for D at `places` r_k; a single D has ρ = ½, as in the authors' own code."""
    phi_1 = -math.expm1(-h)
    b = h if variant == "bh1" else phi_1
    if len(places) == 1:
        return [b / phi_1 / 2]
    right, phi = [], phi_1
    for i in range(1, len(places) + 1):
        phi = 1 / math.factorial(i) - phi / h
        right.append(math.factorial(i) * phi / phi_1)
    powers = torch.tensor([[r ** (i - 1) for r in places] for i in range(1, len(places) + 1)], dtype=torch.float64)
    return torch.linalg.solve(powers, torch.tensor(right, dtype=torch.float64)).tolist()
