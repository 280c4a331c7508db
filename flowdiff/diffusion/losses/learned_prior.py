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
    """A loss of latents z, plus the negative evidence lower bound of images x0 whose prior is the flow in training.

    loss(z) − (log p(x0|ℓ) + log p_σ(z|c) − log q(z|x0))/D at σ = sigma_min, ℓ ~ q(ℓ|x0), nats per dimension of the
    image. The noise has along dimension 1 first ε of ℓ, then the noise of the other loss. The parts are those of the
    other loss, latent_loss (its value), elbo (the bound's term), and in nats reconstruction, −log p(x0|ℓ), and kl, the
    estimate log q(z|x0) − log p_σ(z|c).

    Args:
        loss: the loss of the latents.
        first_stage: the autoencoder, trained along.
        sigma_min: σ > 0 at which the flow is the prior.

    Raises:
        NotADensity: when called with a raw network.

    Source: Chen et al., Variational lossy autoencoder, 2017 (a flow as the learned prior). Vahdat, Kreis & Kautz,
        Score-based generative modeling in latent space, 2021, train a prior along by weighted score matching instead.
    """

    def __init__(self, loss: Loss, first_stage: AutoencoderStage, sigma_min: float):
        self.loss = loss
        self.learned = loss.learned
        self.first_stage = first_stage
        self.sigma_min = sigma_min

    def at(self, step: int) -> LearnedPrior:
        return LearnedPrior(self.loss.at(step), self.first_stage, self.sigma_min)

    def draw_noise(self, x0: Tensor, generator: Generators = None) -> Tensor:
        like = x0.new_empty(len(x0), *self.first_stage.latent_shape)
        return torch.cat([randn_like(like, generator), self.loss.draw_noise(like, generator)], 1)

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, sigma: Tensor, noise: Tensor, cond: Conditioning | None = None
    ) -> LossOutput:
        channels = self.first_stage.latent_shape[0]
        posterior_noise, latent_loss_noise = noise[:, :channels], noise[:, channels:]
        drawn = self.first_stage.sample_latent(x0, posterior_noise)
        log_prior = denoiser.log_prob(drawn.z, torch.full_like(sigma, self.sigma_min), cond)
        elbo = -drawn.bound(log_prior) / x0[0].numel()
        # Detach z: the latent loss alone would collapse all latents to a point. The autoencoder is trained by the bound
        # only. The flow has two terms with the same optimum, the distribution of the latents, so that no weight
        # between them is needed.
        latent = self.loss(denoiser, drawn.z.detach(), sigma, latent_loss_noise, cond)
        parts = {"reconstruction": -drawn.log_likelihood, "kl": drawn.log_posterior - log_prior}
        return LossOutput(latent.loss + elbo, {**latent.parts, "latent_loss": latent.loss, "elbo": elbo, **parts})
