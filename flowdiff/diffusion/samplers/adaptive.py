"""Heun's method that chooses its own steps, each sample for itself, by the Euler step embedded in it.

    x̃ = x + (σ' − σ)·d(x, σ),   x' = x + (σ' − σ)·(d(x, σ) + d(x̃, σ'))/2,   d = (x − D)/σ,
    e = ‖(x' − x̃)/(atol + rtol·max(|x|, |x'|))‖ / √D.

A step with e ≤ 1 is made, one with e > 1 is tried again shorter: the next length in ln σ is h·min(5, max(⅕, 0.9/√e)).
The levels of the grid are met exactly and the steps between them are free, so the fewer levels the better; the last
step, to σ' = 0, is x' = D.
"""

from __future__ import annotations

import math

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from flowdiff.diffusion.samplers.base import Denoise, Sampler, Step
from flowdiff.registry import register
from flowdiff.shapes import append_dims, mean_except_batch

FIRST, SHORTEST = 0.3, 1e-3  # lengths in ln σ: of the first trial, and of a step that is made whatever its error


@register("sampler", "adaptive")
class Adaptive(Sampler):
    """Second order; two denoiser calls for each step that a sample makes and one for each that it rejects.

    num_steps ≥ 1: levels of the grid that are met; with 2 of them the steps from σ_max to σ_min are all its own.
    rtol > 0, atol ≥ 0: what a step may be off, as a share of |x| and in data units.
    A batch is asked for its unfinished samples only. How often is seen in `evaluations.csv` (nfe, mean of a sample).
    Source: Hairer, Nørsett, Wanner, Solving ordinary differential equations I, 1993, section II.4.
    """

    def __init__(self, *, num_steps: PositiveInt, rtol: PositiveFloat, atol: NonNegativeFloat):
        super().__init__(num_steps)
        self.rtol = rtol
        self.atol = atol

    def step(self, denoise: Denoise, x: Tensor, at: Step) -> tuple[Tensor, Tensor]:
        denoised = found = denoise(x, at.sigma)
        if at.sigma_next == 0:
            return denoised, denoised
        x, found = x.clone(), found.clone()
        left = torch.full((len(x),), math.log(at.sigma / at.sigma_next), dtype=torch.float64, device=x.device)
        length = torch.full_like(left, FIRST)  # (B,), as `left` in ln σ
        rows = torch.arange(len(x), device=x.device)  # of those that have not arrived
        while len(rows):
            to_go, h = left[rows], torch.minimum(length[rows], left[rows])
            sigma, sigma_next = at.sigma_next * to_go.exp(), at.sigma_next * (to_go - h).exp()
            trial, change = self._heun(denoise, x[rows], found[rows], sigma, sigma_next, rows)
            error = self._error(x[rows], trial, change)
            made = (error <= 1) | (h <= SHORTEST)
            length[rows] = (h * (0.9 / error.sqrt()).clamp(0.2, 5)).clamp(min=SHORTEST)
            x[rows[made]] = trial[made]
            left[rows[made]] = (to_go - h)[made]
            moved = rows[made & (to_go > h)]
            if len(moved):
                found[moved] = denoise(x[moved], (at.sigma_next * left[moved].exp()).to(x), moved)
            rows = rows[left[rows] > 0]
        return x, denoised

    def _heun(
        self, denoise: Denoise, x: Tensor, denoised: Tensor, sigma: Tensor, sigma_next: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x' and x' − x̃ for x, D (b, …) at levels (b,)."""
        sigma, level = (append_dims(s.to(x), x.ndim) for s in (sigma, sigma_next))
        predicted = torch.lerp(denoised, x, level / sigma)
        slope_next = (predicted - denoise(predicted, level.flatten(), rows)) / level
        change = (level - sigma) / 2 * (slope_next - (x - denoised) / sigma)
        return predicted + change, change

    def _error(self, x: Tensor, x_next: Tensor, change: Tensor) -> Tensor:
        """e (b,), 0 where it is no number: such a sample is lost and is let through to the end."""
        allowed = self.atol + self.rtol * torch.maximum(x.abs(), x_next.abs())
        return mean_except_batch((change / allowed).double() ** 2).sqrt().nan_to_num(0)
