"""A loss with the residual of the Fokker–Planck equation, which ties the densities of all σ to one diffusion."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from flowdiff.diffusion.denoiser import Denoiser
from flowdiff.diffusion.fokker_planck import residuals, signs
from flowdiff.diffusion.losses.base import Loss, LossOutput
from flowdiff.models.conditioning import Conditioning
from flowdiff.noise import Generators
from flowdiff.shapes import append_dims

PROBES = 2  # two are the fewest whose product has no bias, see `OneDiffusion`


class OneDiffusion(Loss):
    """A loss, plus the squared residual of the Fokker–Planck equation for a part of the batch.

    loss + λ·(σR)²/D,    R = ∂_σ log p − σ·(Δ log p + ‖∇ log p‖²) at x = x0 + σ·noise

    σR has no unit: nats per unit of ln σ. A small error of a density with D independent dimensions changes it by about
    √D times the error of one of them, so (σR)²/D is like the loss per dimension, and λ means the same in every
    dimension.

    The square is the product of two estimates of R with independent random signs for Δ log p. Its mean is R². The mean
    of one squared estimate would be R² plus its variance, 2σ²·Σ_{i≠j} H_ij², and minimising that would push the
    Hessian H of log p towards a diagonal one, which the data do not have.

    The term has third derivatives, whose graph costs a step several times over, hardly less for a few samples than for
    many. So only one step in `every` has it, `every` times as strong: on average over the steps it is the same.

    The noise has (1 + 2)·C channels: that of the other loss, and the signs. The signs are 0 for samples whose residual
    is left out. The parts are those of the other loss, and fokker_planck, (σR)²/D, whose mean over batches and steps is
    the mean over the samples that have one; it may be below 0.

    Args:
        loss: the other loss.
        weight: λ > 0.
        share: part of the batch that the residual is computed for, in (0, 1].
        every: optimiser steps from one with the term to the next, ≥ 1.

    Raises:
        NotADensity: when called with a raw network.

    Source: Lai et al., FP-Diffusion: Improving score-based diffusion models by enforcing the underlying score
        Fokker–Planck equation, 2023, for the equation of the score; here it is that of log p itself.
    """

    def __init__(self, loss: Loss, weight: float, share: float, every: int = 1):
        self.loss = loss
        self.learned = loss.learned
        self.weight = weight
        self.share = share
        self.every = every
        self.gradient = loss.gradient
        self.differentiates_score = loss.differentiates_score
        self._times = 1.0  # how strong the term is at the present step

    def at(self, step: int) -> OneDiffusion:
        now = OneDiffusion(self.loss.at(step), self.weight, self.share, self.every)
        now._times = 0.0 if step % self.every else float(self.every)
        return now

    def draw_noise(self, x0: Tensor, generator: Generators = None) -> Tensor:
        noise = self.loss.draw_noise(x0, generator)
        chosen = math.ceil(self.share * len(x0))
        part = generator[:chosen] if isinstance(generator, Sequence) else generator
        probes = x0.new_zeros(PROBES, *x0.shape)
        probes[:, :chosen] = signs(x0[:chosen], part, PROBES)  # a batch is in random order
        return torch.cat([noise, *probes], 1)

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, sigma: Tensor, noise: Tensor, cond: Conditioning | None = None
    ) -> LossOutput:
        noise, *probes = noise.split(x0.shape[1], 1)
        output = self.loss(denoiser, x0, sigma, noise, cond)
        chosen = probes[0].flatten(1).any(1).nonzero()[:, 0]
        square = x0.new_zeros(len(x0))
        if self._times and len(chosen):
            x, level = (x0 + append_dims(sigma, x0.ndim) * noise)[chosen], sigma[chosen]
            part = None if cond is None else cond[chosen]
            vectors = torch.stack([v[chosen] for v in probes])
            found = level * residuals(denoiser.log_prob, x, level, part, probes=vectors, differentiable=True)
            of_each = found.prod(0) / x0[0].numel() * (self._times * len(x0) / len(chosen))
            square = square.index_put((chosen,), of_each)
        return LossOutput(output.loss + self.weight * square, {**output.parts, "fokker_planck": square})
