"""What a network is, and what it declares that it can do.

Every network maps (x, c_noise, cond) to an output F that a scaling turns into the denoiser D. A plain network
(unet, mlp) promises nothing more. Three kinds promise more, and losses, guidance and metrics ask for them by type:

    Density            log p_σ(x|c), its score, and exact samples       network=score_flow
    NoisyClassifier    log p(c|x, σ)                                    network=classifier
    AutoencoderNetwork an encoder, a decoder and a prior                network=vae
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from flowdiff.models.autoencoder.base import Autoencoder
from flowdiff.models.conditioning import Conditioning
from flowdiff.noise import Generators


class Network(nn.Module, ABC):
    """F(x, c_noise, c): the base class of everything registered as `network`.

    outputs_score: whether F is the score ∇ₓ log p itself; such a network goes with scaling=score only.
    """

    outputs_score: bool = False

    @abstractmethod
    def forward(self, x: Tensor, c_noise: Tensor, cond: Conditioning | None = None) -> Tensor:
        """F for x (B, *shape), c_noise (B,) and the condition of B samples: like x."""

    def fit(self, batches: Iterable[Tensor]) -> None:  # noqa: B027, most networks measure nothing
        """Measure what the network needs to know of the training data: batches (B, *shape), each sample once.

        Called once before training. The default measures nothing and reads no batch.
        """

    def compile_for_training(self) -> None:
        """Compile the method that training calls by torch.compile."""
        self.compile()


class Density(Network):
    """A normalised density p_σ(x|c) at every noise level σ, whose output is the score ∇ₓ log p_σ(x|c).

    x (B, *shape), sigma (B,) > 0 in data units; cond of B samples or None.
    """

    outputs_score = True
    twice_differentiable: bool = True  # whether autograd differentiates the score; else losses of the score are refused

    @abstractmethod
    def log_prob(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        """log p_σ(x|c) in nats, (B,)."""

    @abstractmethod
    def log_prob_and_score(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> tuple[Tensor, Tensor]:
        """log p_σ(x|c) in nats, (B,), and the score like x, from one evaluation."""

    @abstractmethod
    def sample(self, sigma: Tensor, cond: Conditioning | None = None, generator: Generators = None) -> Tensor:
        """Exact samples x ~ p_σ(·|c), (B, *shape), one for each entry of sigma (B,)."""

    @abstractmethod
    def encode(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        """The base point z of x, like x: N(0, I) if x ~ p_σ(·|c)."""

    @abstractmethod
    def decode(self, z: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        """The sample x of a base point z, like z: the inverse of `encode`."""

    def compile_for_training(self) -> None:
        self.log_prob = torch.compile(self.log_prob)  # type: ignore[method-assign]  # the output is its gradient


class NoisyClassifier(Network):
    """A classifier p(c|x, σ) of noised samples; its output is the score of a Gaussian guided by it."""

    outputs_score = True

    @abstractmethod
    def class_log_prob(self, x: Tensor, sigma: Tensor) -> Tensor:
        """log p(c|x, σ) of every class, (B, C) nats, for x (B, *shape) and sigma (B,) > 0."""

    def compile_for_training(self) -> None:
        self.class_log_prob = torch.compile(self.class_log_prob)  # type: ignore[method-assign]


class AutoencoderNetwork(Network):
    """An autoencoder with a prior: it reconstructs and samples, and does not depend on σ."""

    outputs_score = True
    autoencoder: Autoencoder

    @abstractmethod
    def from_prior(self, n: int, generator: Generators = None) -> Tensor:
        """n samples E[x|ℓ] with ℓ ~ N(0, I), (n, *shape)."""
