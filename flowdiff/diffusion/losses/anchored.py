"""A loss that holds an adapted model near its base."""

from __future__ import annotations

import torch
from torch import Tensor

from flowdiff.diffusion.denoiser import Denoiser
from flowdiff.diffusion.losses.base import Loss, LossOutput, Student
from flowdiff.diffusion.other_run import OfData
from flowdiff.models.adapters.deltas import disabled
from flowdiff.models.conditioning import Conditioning
from flowdiff.noise import Generators
from flowdiff.shapes import append_dims


class Anchored(Loss):
    """A loss, plus the squared distance of the adapted model to its base at the noised samples.

    density       loss + λ·(log p − log p_base)²/D at x = x0 + σ·noise, D the dimensions of x
    raw network   loss + λ·w(σ)·‖D(x) − D_base(x)‖²/D,  w = (σ² + σ_data²)/(σ·σ_data)²

    It costs one more evaluation of the base, and of a raw network itself. Both are asked about the condition as the
    adapted model embeds it. The part anchor is the distance without λ.

    Args:
        loss: the other loss.
        weight: λ > 0.
        steps: optimiser steps over which λ falls linearly to 0, ≥ 1; None: it stays.
    """

    def __init__(self, loss: Loss, weight: float, steps: int | None):
        self.loss = loss
        self.learned = loss.learned
        self.weight = weight
        self.steps = steps
        self.gradient = loss.gradient
        self.differentiates_score = loss.differentiates_score

    def check(self, model: OfData) -> None:
        self.loss.check(model)

    def numbers(self, model: Student, n: int, seed: int) -> dict[str, float]:
        return self.loss.numbers(model, n, seed)

    def at(self, step: int) -> Anchored:
        left = 1.0 if self.steps is None else max(0.0, 1 - step / self.steps)
        return Anchored(self.loss.at(step), self.weight * left, None)

    def draw_noise(self, x0: Tensor, generator: Generators = None) -> Tensor:
        return self.loss.draw_noise(x0, generator)

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, sigma: Tensor, noise: Tensor, cond: Conditioning | None = None
    ) -> LossOutput:
        output = self.loss(denoiser, x0, sigma, noise, cond)
        if not self.weight:
            return output
        x = x0 + append_dims(sigma, x0.ndim) * noise[:, : x0.shape[1]]  # the other loss may draw more than the noise
        distance = _distance(denoiser, x, sigma, cond)
        return LossOutput(output.loss + self.weight * distance, {**output.parts, "anchor": distance})


def _distance(denoiser: Denoiser, x: Tensor, sigma: Tensor, cond: Conditioning | None) -> Tensor:
    """The squared distance to the base, (B,)."""
    evaluate = denoiser.log_prob if denoiser.is_density else denoiser
    here = evaluate(x, sigma, cond)
    with torch.no_grad(), disabled(denoiser):
        there = evaluate(x, sigma, cond)
    if denoiser.is_density:
        return (here - there).square() / x[0].numel()
    w = (sigma**2 + denoiser.sigma_data**2) / (sigma * denoiser.sigma_data) ** 2
    return w * (here - there).flatten(1).square().mean(1)
