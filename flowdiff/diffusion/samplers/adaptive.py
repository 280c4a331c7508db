"""Heun's method with adaptive steps: each sample chooses its own, by the error of the Euler step embedded in it.

    x̃ = x + (σ' − σ)·d(x, σ),   x' = x + (σ' − σ)·(d(x, σ) + d(x̃, σ'))/2,   d = (x − D)/σ,
    e = ‖(x' − x̃)/(atol + rtol·max(|x|, |x'|))‖ / √D.

A step with e ≤ 1 is accepted; one with e > 1 is rejected and tried again with a shorter length. The next length in ln σ
is h·min(5, max(⅕, 0.9/√e)). Every level of the grid is reached exactly and the steps between levels are free, so a
grid of few levels is best. The last step, to σ' = 0, is x' = D.
"""

from __future__ import annotations

import math

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from flowdiff.diffusion.samplers.base import BatchDenoiser, Sampler, Step
from flowdiff.registry import register
from flowdiff.shapes import append_dims, mean_except_batch

FIRST_LENGTH = 0.3  # of the first trial, in ln σ
MIN_LENGTH = 1e-3  # in ln σ; a step of this length is accepted whatever its error


@register("sampler", "adaptive")
class Adaptive(Sampler):
    """Heun's method with adaptive steps: second order, two denoiser calls per accepted step, one per rejected step.

    x' = x + (σ' − σ)·(d(x, σ) + d(x̃, σ'))/2 with σ' such that rms((x' − x̃)/(atol + rtol·max(|x|, |x'|))) ≤ 1

    The denoiser is called for the unfinished samples of a batch only. `evaluations.csv` records the mean number of
    calls per sample (nfe).

    Args:
        num_steps: number of steps of the grid, whose levels are reached exactly, ≥ 1; with 2 the steps between σ_max
            and σ_min are all adaptive.
        rtol: largest error of a step as a fraction of |x|, > 0.
        atol: largest error of a step beyond that, ≥ 0, in data units.

    Source: Hairer, Nørsett, Wanner, Solving ordinary differential equations I, 1993, section II.4.
    """

    asks_for_rows = True

    def __init__(self, *, num_steps: PositiveInt, rtol: PositiveFloat, atol: NonNegativeFloat):
        super().__init__(num_steps)
        self.rtol = rtol
        self.atol = atol

    def step(self, denoise: BatchDenoiser, x: Tensor, at: Step) -> tuple[Tensor, Tensor]:
        denoised = found = denoise(x, at.sigma)
        if at.sigma_next == 0:
            return denoised, denoised
        x, found = x.clone(), found.clone()
        left = torch.full((len(x),), math.log(at.sigma / at.sigma_next), dtype=torch.float64, device=x.device)
        length = torch.full_like(left, FIRST_LENGTH)  # (B,), in ln σ like `left`
        rows = torch.arange(len(x), device=x.device)  # the unfinished samples
        while len(rows):
            to_go, h = left[rows], torch.minimum(length[rows], left[rows])
            sigma, sigma_next = at.sigma_next * to_go.exp(), at.sigma_next * (to_go - h).exp()
            trial, change = self._heun(denoise, x[rows], found[rows], sigma, sigma_next, rows)
            error = self._error(x[rows], trial, change)
            accepted = (error <= 1) | (h <= MIN_LENGTH)
            length[rows] = (h * (0.9 / error.sqrt()).clamp(0.2, 5)).clamp(min=MIN_LENGTH)
            x[rows[accepted]] = trial[accepted]
            left[rows[accepted]] = (to_go - h)[accepted]
            moved = rows[accepted & (to_go > h)]
            if len(moved):
                found[moved] = denoise(x[moved], (at.sigma_next * left[moved].exp()).to(x), moved)
            rows = rows[left[rows] > 0]
        return x, denoised

    def _heun(
        self, denoise: BatchDenoiser, x: Tensor, denoised: Tensor, sigma: Tensor, sigma_next: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x' and x' − x̃ (b, …) for x and D (b, …) at levels (b,)."""
        sigma, level = (append_dims(s.to(x), x.ndim) for s in (sigma, sigma_next))
        predicted = torch.lerp(denoised, x, level / sigma)
        slope_next = (predicted - denoise(predicted, level.flatten(), rows)) / level
        change = (level - sigma) / 2 * (slope_next - (x - denoised) / sigma)
        return predicted + change, change

    def _error(self, x: Tensor, x_next: Tensor, change: Tensor) -> Tensor:
        """e (b,); 0 where it is NaN, so that a sample with NaN also finishes."""
        allowed = self.atol + self.rtol * torch.maximum(x.abs(), x_next.abs())
        return mean_except_batch((change / allowed).double() ** 2).sqrt().nan_to_num(0)
