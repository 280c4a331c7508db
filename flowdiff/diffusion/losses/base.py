"""Training objectives, all of x = x0 + σ·noise, per sample and per dimension (D = prod(shape)).

denoising       w(σ)·‖D(x) − x0‖²/D                    (or ‖·‖₁)
score_matching  σ²·‖s(x) − (x0 − x)/σ²‖²/D
nll             −log p_σ(x|c)/D                        nats per dimension, first-order only
hybrid          denoising + λ·nll
cross_entropy   −log p(c|x, σ)                         nats per sample, of a classifier
elbo            (−log p(x|ℓ) + β·KL(q(ℓ|x) ‖ N(0, I)))/D   nats per dimension, of an autoencoder; no noise in x

With first_stage.train=true, whatever trains the flow of latents is the first term of two:
LearnedPrior    loss(z) − (log p(x|ℓ) + log p_σmin(z|c) − log q(z|x))/D,   D of the image

Where the score of a flow is differentiated, `gradient` says how: by double_backward, or by the first-order forms of
flowdiff/networks/directional.py, which take less memory.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import Tensor

from flowdiff.conditioning import Conditioning
from flowdiff.denoiser import Denoiser
from flowdiff.first_stage.base import AutoencoderStage
from flowdiff.networks.directional import Gradient
from flowdiff.noise import Generators, randn, randn_like
from flowdiff.registry import register
from flowdiff.shapes import append_dims, mean_except_batch
from flowdiff.weightings import Weighting


@dataclass(frozen=True)
class LossOutput:
    """The loss per sample (B,), and its named parts (B,) for logging."""

    loss: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


class Loss(ABC):
    """loss(denoiser, x0 (B, …), sigma (B,), noise like x0, cond) → LossOutput with loss (B,)."""

    needs_density = False  # whether it calls log_prob, which only a score flow has
    needs_classifier = False  # whether it calls class_log_prob, which only a classifier has
    needs_autoencoder = False  # whether it is of an autoencoder, which no other loss is
    differentiates_score = True  # whether its gradient goes through the score: a second derivative of log_prob
    gradient: Gradient = "double_backward"  # how a score flow takes that derivative

    @abstractmethod
    def __call__(
        self, denoiser: Denoiser, x0: Tensor, sigma: Tensor, noise: Tensor, cond: Conditioning | None = None
    ) -> LossOutput: ...

    def draw_noise(self, x0: Tensor, generator: Generators = None) -> Tensor:
        """The noise this loss trains on: N(0, I) like x0."""
        return randn_like(x0, generator)

    def at(self, step: int) -> Loss:
        """The loss after `step` optimiser steps, for one that changes on the way."""
        return self


@register("loss", "denoising")
class Denoising(Loss):
    """w(σ)·‖D(x, σ, c) − x0‖²/D, or w(σ)·‖·‖₁/D with norm="l1" (Vincent, 2011; Karras et al., 2022).

    offset_noise ≥ 0 adds that much of one common normal number per channel to the noise (Guttenberg, 2023).
    """

    def __init__(
        self,
        weighting: Weighting,
        *,
        norm: Literal["l1", "l2"],
        offset_noise: NonNegativeFloat,
        gradient: Gradient,
    ):
        self.weighting = weighting
        self.gradient = gradient
        self.distance = {"l1": Tensor.abs, "l2": Tensor.square}[norm]
        self.offset_noise = offset_noise

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, sigma: Tensor, noise: Tensor, cond: Conditioning | None = None
    ) -> LossOutput:
        D = denoiser(x0 + append_dims(sigma, x0.ndim) * noise, sigma, cond)
        weight = self.weighting(sigma, denoiser.sigma_data)
        return LossOutput(weight * mean_except_batch(self.distance(D - x0)))

    def draw_noise(self, x0: Tensor, generator: Generators = None) -> Tensor:
        noise = randn_like(x0, generator)
        if self.offset_noise:
            per_channel = x0.shape[:2] + (1,) * (x0.ndim - 2)  # (B, C, 1, 1)
            noise = noise + self.offset_noise * randn(per_channel, generator, device=x0.device, dtype=x0.dtype)
        return noise


@register("loss", "score_matching")
class ScoreMatching(Loss):
    """σ²·‖s(x, σ, c) + noise/σ‖²/D: denoising score matching with λ(σ) = σ² (Song & Ermon, 2019)."""

    def __init__(self, *, gradient: Gradient):
        self.gradient = gradient

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, sigma: Tensor, noise: Tensor, cond: Conditioning | None = None
    ) -> LossOutput:
        scale = append_dims(sigma, x0.ndim)
        s = denoiser.score(x0 + scale * noise, sigma, cond)
        return LossOutput(mean_except_batch((scale * s + noise).square()))


@register("loss", "nll")
class NLL(Loss):
    """−log p_σ(x|c)/D, nats per dimension of the noised data: first-order autograd only; needs a density."""

    needs_density = True
    differentiates_score = False

    def __init__(self):
        pass

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, sigma: Tensor, noise: Tensor, cond: Conditioning | None = None
    ) -> LossOutput:
        x = x0 + append_dims(sigma, x0.ndim) * noise
        return LossOutput(-denoiser.log_prob(x, sigma, cond) / x0[0].numel())


@register("loss", "hybrid")
class Hybrid(Loss):
    """w(σ)·‖D − x0‖²/D + λ·(−log p_σ(x|c)/D) from one evaluation of the flow; λ = nll_weight > 0; needs a density.

    Score matching is blind to the weights of separated modes, likelihood is not.
    """

    needs_density = True

    def __init__(self, weighting: Weighting, *, nll_weight: PositiveFloat, gradient: Gradient):
        self.weighting = weighting
        self.gradient = gradient
        self.nll_weight = nll_weight

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, sigma: Tensor, noise: Tensor, cond: Conditioning | None = None
    ) -> LossOutput:
        x = x0 + append_dims(sigma, x0.ndim) * noise
        log_prob, D = denoiser.log_prob_and_denoised(x, sigma, cond)
        denoising = self.weighting(sigma, denoiser.sigma_data) * mean_except_batch((D - x0).square())
        nll = -log_prob / x0[0].numel()
        return LossOutput(denoising + self.nll_weight * nll, {"denoising": denoising, "nll": nll})


@register("loss", "cross_entropy")
class CrossEntropy(Loss):
    """−Σ_c v_c·log p(c|x, σ) in nats per sample, v = cond.vector (B, C), zeros and a one; needs a classifier."""

    needs_classifier = True
    differentiates_score = False

    def __init__(self):
        pass

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, sigma: Tensor, noise: Tensor, cond: Conditioning | None = None
    ) -> LossOutput:
        log_prob = denoiser.network.class_log_prob(x0 + append_dims(sigma, x0.ndim) * noise, sigma)
        right = (log_prob.argmax(1) == cond.vector.argmax(1)).to(log_prob)
        return LossOutput(-(cond.vector * log_prob).sum(1), {"accuracy": right})


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


class LearnedPrior(Loss):
    """Another loss of latents z, and the negative evidence lower bound of images x0 whose prior is the flow it trains.

    loss(z) − (log p(x0|ℓ) + log p_σ(z|c) − log q(z|x0))/D at σ = sigma_min, z of ℓ ~ q(ℓ|x0): nats per dimension of the
    image. x0 are images; the noise (B, 2, *latent_shape) is ε of ℓ, and that of the other loss. Parts: those of the
    other loss, itself as latent_loss, the bound's as elbo, and in nats reconstruction, −log p(x0|ℓ), and kl, the
    estimate log q(z|x0) − log p_σ(z|c). Raises NotADensity for a raw network.
    Source: Chen et al., Variational lossy autoencoder, 2017 (a flow as the learned prior); the other way, by a weighted
    score matching instead of a density: Vahdat, Kreis & Kautz, Score-based generative modeling in latent space, 2021.
    """

    needs_density = True

    def __init__(self, loss: Loss, first_stage: AutoencoderStage, sigma_min: float):
        self.loss = loss
        self.first_stage = first_stage
        self.sigma_min = sigma_min

    def at(self, step: int) -> LearnedPrior:
        return LearnedPrior(self.loss.at(step), self.first_stage, self.sigma_min)

    def draw_noise(self, x0: Tensor, generator: Generators = None) -> Tensor:
        like = x0.new_empty(len(x0), *self.first_stage.latent_shape)
        return torch.stack([randn_like(like, generator), self.loss.draw_noise(like, generator)], 1)

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, sigma: Tensor, noise: Tensor, cond: Conditioning | None = None
    ) -> LossOutput:
        of_posterior, of_latents = noise.unbind(1)
        drawn = self.first_stage.drawn(x0, of_posterior)
        log_prior = denoiser.log_prob(drawn.z, torch.full_like(sigma, self.sigma_min), cond)
        elbo = -drawn.bound(log_prior) / x0[0].numel()
        # The other loss sees latents that it cannot move: it is least where they all are one point, and pays nothing
        # for what they no longer say of the image. So the autoencoder hears the bound alone, and the flow hears two
        # terms that agree on what it should be, the law of the latents: no weight between them would change that.
        latent = self.loss(denoiser, drawn.z.detach(), sigma, of_latents, cond)
        parts = {"reconstruction": -drawn.log_likelihood, "kl": drawn.log_posterior - log_prior}
        return LossOutput(latent.loss + elbo, {**latent.parts, "latent_loss": latent.loss, "elbo": elbo, **parts})


def latent_noise(noise: Tensor, latent_shape: tuple[int, ...]) -> Tensor:
    """ε (B, *latent_shape) from the first numbers of noise (B, …), which has at least as many."""
    return noise.flatten(1)[:, : math.prod(latent_shape)].reshape(-1, *latent_shape)
