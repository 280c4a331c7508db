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
flowdiff/models/nn/directional.py, which take less memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from torch import Tensor

from flowdiff.diffusion.denoiser import Denoiser
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.nn.directional import Gradient
from flowdiff.noise import Generators, randn_like


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
