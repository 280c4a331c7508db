"""The contract of an autoencoder: x → q(ℓ|x) → ℓ → p(x|ℓ), and the two terms of its evidence lower bound."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn

from flowdiff.models.autoencoder.decoder_laws import DecoderLaw
from flowdiff.models.autoencoder.posterior import Posterior


class Elbo(NamedTuple):
    """The two terms of the evidence lower bound of each image in a batch, in nats."""

    log_likelihood: Tensor  # log p(x|ℓ), (B,)
    kl: Tensor  # KL(q ‖ N(0, I)) of each dimension of the latent, (B, *latent_shape)

    @property
    def bound(self) -> Tensor:
        """log p(x|ℓ) − KL, (B,) nats; its mean over ε is at most log p(x)."""
        return self.log_likelihood - self.kl.flatten(1).sum(1)


class Autoencoder(nn.Module, ABC):
    """An autoencoder of images x ∈ [−1, 1]: an encoder, a decoder and a distribution of x given the decoder's output.

    x (B, *shape) → q(ℓ|x) → ℓ (B, *latent_shape) → a (B, *shape) → p(x|ℓ)

    Args:
        shape: shape of one image.
        latent_shape: shape of one latent.
        law: p(x|ℓ) as a function of the decoder's output a.
    """

    calibrated: bool = True  # whether the scale of the law was trained together with the weights

    def __init__(self, shape: tuple[int, ...], latent_shape: tuple[int, ...], law: DecoderLaw):
        super().__init__()
        self.shape = tuple(shape)
        self.latent_shape = tuple(latent_shape)
        self.law = law

    @abstractmethod
    def posterior(self, x: Tensor) -> Posterior:
        """q(ℓ|x)."""

    @abstractmethod
    def decoded(self, latent: Tensor) -> Tensor:
        """The decoder's output a, (B, *shape), for latents (B, *latent_shape)."""

    def decode(self, latent: Tensor) -> Tensor:
        """E[x|ℓ], (B, *shape)."""
        return self.law.image(self.decoded(latent))

    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x|ℓ] at ℓ = E[ℓ|x], shaped like x."""
        return self.decode(self.posterior(x).mean)

    def elbo(self, x: Tensor, noise: Tensor) -> Elbo:
        """The terms of the bound at ℓ = m(x) + e^{v(x)/2}·noise, for noise (B, *latent_shape) ~ N(0, I)."""
        posterior = self.posterior(x)
        return Elbo(self.law.log_prob(x, self.decoded(posterior.sample(noise))), posterior.kl())
