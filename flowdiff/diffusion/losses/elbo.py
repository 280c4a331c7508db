"""The evidence lower bound of an autoencoder."""

from __future__ import annotations

import math

from pydantic import NonNegativeFloat, NonNegativeInt
from torch import Tensor

from flowdiff.diffusion.denoiser import Denoiser
from flowdiff.diffusion.losses.base import Loss, LossOutput
from flowdiff.models.conditioning import Conditioning
from flowdiff.registry import register


@register("loss", "elbo")
class Elbo(Loss):
    """−log p(x0|ℓ) + β·Σᵢ max(λ, KLᵢ), over D, nats per dimension; ℓ = m + e^{v/2}·ε ~ q(ℓ|x0); needs an autoencoder.

    kl_weight: β ≥ 0, 1 for the evidence lower bound itself, to which it rises linearly from 0 in warmup_steps.
    free_bits: λ ≥ 0 nats, below which the batch's mean KL of a latent dimension costs nothing. σ plays no part, and ε
    are the first numbers of the noise. Parts: reconstruction, −log p(x0|ℓ), and kl, both in nats.
    Sources: Kingma & Welling, 2014; Bowman et al., Generating sentences from a continuous space, 2016 (warm-up);
    Kingma et al., Improved variational inference with inverse autoregressive flow, 2016 (free bits).
    """

    needs_autoencoder = True
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
        autoencoder = denoiser.network.autoencoder
        log_likelihood, kl = autoencoder.elbo(x0, latent_noise(noise, autoencoder.latent_shape))
        paid = (kl + (self.free_bits - kl.mean(0)).clamp(min=0)).flatten(1).sum(1)  # mean over the batch: max(λ, KLᵢ)
        loss = (self.kl_weight * paid - log_likelihood) / x0[0].numel()
        return LossOutput(loss, {"reconstruction": -log_likelihood, "kl": kl.flatten(1).sum(1)})


def latent_noise(noise: Tensor, latent_shape: tuple[int, ...]) -> Tensor:
    """ε (B, *latent_shape) from the first numbers of noise (B, …), which has at least as many."""
    return noise.flatten(1)[:, : math.prod(latent_shape)].reshape(-1, *latent_shape)
