"""The contract of an autoencoder: x → q(ℓ|x) → ℓ → p(x|ℓ), and the two terms of its evidence lower bound."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn

from flowdiff.models.autoencoder.decoder_laws import DecoderLaw
from flowdiff.models.autoencoder.posterior import Posterior


class Elbo(NamedTuple):
    """Of each image of a batch: log p(x|ℓ) in nats (B,), KL(q ‖ N(0, I)) in nats by dimension (B, *latent_shape)."""

    log_likelihood: Tensor
    kl: Tensor

    @property
    def bound(self) -> Tensor:
        """log p(x|ℓ) − KL, (B,) nats: its mean over ε is at most log p(x)."""
        return self.log_likelihood - self.kl.flatten(1).sum(1)


class Autoencoder(nn.Module, ABC):
    """x ∈ [−1, 1], (B, *shape) → q(ℓ|x); ℓ (B, *latent_shape) → what `law` makes a density of x from."""

    calibrated = True  # whether the law's scale was learned with the rest

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
        """The decoder's output a, (B, *shape)."""

    def decode(self, latent: Tensor) -> Tensor:
        """E[x|ℓ], (B, *shape)."""
        return self.law.image(self.decoded(latent))

    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x|ℓ] at ℓ = E[ℓ|x], like x."""
        return self.decode(self.posterior(x).mean)

    def elbo(self, x: Tensor, noise: Tensor) -> Elbo:
        """The bound's terms at ℓ = m(x) + e^{v(x)/2}·noise, noise (B, *latent_shape) ~ N(0, I)."""
        posterior = self.posterior(x)
        return Elbo(self.law.log_prob(x, self.decoded(posterior.sample(noise))), posterior.kl())
