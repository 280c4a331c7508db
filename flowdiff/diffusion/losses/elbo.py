"""The evidence lower bound of an autoencoder."""

from __future__ import annotations

import math

from pydantic import NonNegativeFloat, NonNegativeInt
from torch import Tensor

from flowdiff.diffusion.denoiser import Denoiser
from flowdiff.diffusion.losses.base import NEEDS_AUTOENCODER, Loss, LossOutput
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.networks.base import AutoencoderNetwork
from flowdiff.registry import register


@register("loss", "elbo", requires=[NEEDS_AUTOENCODER])
class Elbo(Loss):
    """The negative evidence lower bound, (−log p(x0|ℓ) + β·Σᵢ max(λ, KLᵢ))/D in nats per dimension.

    ℓ = m + e^{v/2}·ε ~ q(ℓ|x0). σ has no effect, and ε is the first part of the noise. The parts are reconstruction,
    −log p(x0|ℓ), and kl, both in nats per sample.

    Args:
        kl_weight: β ≥ 0; 1 gives the evidence lower bound itself.
        warmup_steps: optimiser steps, ≥ 0, in which β rises linearly from 0 to kl_weight.
        free_bits: λ ≥ 0 in nats; a latent dimension whose KL, averaged over the batch, is below λ costs λ.

    Source: Kingma & Welling, Auto-encoding variational Bayes, 2014; Bowman et al., Generating sentences from a
        continuous space, 2016 (warm-up); Kingma et al., Improved variational inference with inverse autoregressive
        flow, 2016 (free bits).
    """

    differentiates_score = False

    def __init__(self, *, kl_weight: NonNegativeFloat, warmup_steps: NonNegativeInt, free_bits: NonNegativeFloat):
        self.kl_weight = kl_weight
        self.warmup_steps = warmup_steps
        self.free_bits = free_bits

    def at(self, step: int) -> Elbo:
        if step >= self.warmup_steps:
            return self
        now = self.kl_weight * step / self.warmup_steps
        return Elbo(kl_weight=now, warmup_steps=0, free_bits=self.free_bits)

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, sigma: Tensor, noise: Tensor, cond: Conditioning | None = None
    ) -> LossOutput:
        assert isinstance(denoiser.network, AutoencoderNetwork)  # the requirement
        autoencoder = denoiser.network.autoencoder
        log_likelihood, kl = autoencoder.elbo(x0, latent_noise(noise, autoencoder.latent_shape))
        cost = (kl + (self.free_bits - kl.mean(0)).clamp(min=0)).flatten(1).sum(1)  # its batch mean is Σᵢ max(λ, KLᵢ)
        loss = (self.kl_weight * cost - log_likelihood) / x0[0].numel()
        return LossOutput(loss, {"reconstruction": -log_likelihood, "kl": kl.flatten(1).sum(1)})


def latent_noise(noise: Tensor, latent_shape: tuple[int, ...]) -> Tensor:
    """ε (B, *latent_shape): the first numbers of noise (B, …), which has at least as many."""
    return noise.flatten(1)[:, : math.prod(latent_shape)].reshape(-1, *latent_shape)
