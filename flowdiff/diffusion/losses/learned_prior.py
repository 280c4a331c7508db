"""A flow trained together with the autoencoder whose prior it is."""

from __future__ import annotations

import torch
from torch import Tensor

from flowdiff.diffusion.denoiser import Denoiser
from flowdiff.diffusion.losses.base import Loss, LossOutput
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.first_stage.base import AutoencoderStage
from flowdiff.noise import Generators, randn_like


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
