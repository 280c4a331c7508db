"""The contract of a network, and what each kind of network can do.

Every network maps (x, c_noise, cond) to an output F that a scaling turns into the denoiser D. Plain networks (unet,
mlp) do nothing more. Some kinds do more; losses, guidance and metrics ask for them by type:

    Density            log p_σ(x|c), its score, and exact samples
    FlowDensity        a density that also maps x to base points z      network=score_flow
    NoisyClassifier    log p(c|x, σ)                                    network=classifier
    AutoencoderNetwork an encoder, a decoder and a prior                network=vae
    ImageTextNetwork   embeddings of images and of captions; no D       network=clip
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from flowdiff.models.autoencoder.base import Autoencoder
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.flows.guided import GuidanceOrder
from flowdiff.noise import Generators
from flowdiff.registry import Requirement
from flowdiff.shapes import sum_except_batch

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SCALING_IS_SCORE = Requirement(
    "scaling",
    fits=lambda scaling, node: node["name"] == "score",
    reason="this network outputs the score ∇log p itself, which any other scaling would distort",
    remedy="set scaling=score",
)


def only(group: str, name: str, reason: str) -> Requirement:
    """The requirement that a config group has the given option."""
    return Requirement(group, lambda other, node: node["name"] == name, reason, f"set {group}={name}")


class Network(nn.Module, ABC):
    """Base class of every registered network: x, noise level and condition → F.

    D = c_skip·x + c_out·F(c_in·x, c_noise, c)

    twice_differentiable: whether autograd can differentiate it twice in x; of a density, log p, so that losses of the
    score can be differentiated.
    takes_hint: whether it can have controls, which read cond.hint (flowdiff/models/nn/control.py).
    """

    twice_differentiable: bool = True
    takes_hint: bool = False

    @abstractmethod
    def forward(self, x: Tensor, c_noise: Tensor, cond: Conditioning | None = None) -> Tensor:
        """F, shaped like x, for x (B, *shape), c_noise (B,) and the condition of B samples or None."""

    def fit(self, batches: Iterable[Tensor]) -> None:
        """Measure statistics of the training data, given as batches (B, *shape) that contain each sample once.

        Called once before training. The default measures nothing and reads no batch.
        """

    def fit_classes(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Measure statistics of each class, from the batches of `fit` with their labels, (B, *shape) and (B,) int64.

        Called once, after `fit`. The default measures nothing and reads no batch.
        """

    def compile_for_training(self) -> None:
        """Compile the method that training calls with torch.compile."""
        self.compile()


class Density(Network):
    """A normalised density p_σ(x|c) at every noise level σ; the network's output is its score.

    F = s = ∇ₓ log p_σ(x|c)

    In all methods x is (B, *shape), sigma (B,) > 0 in data units, and cond the condition of B samples or None.
    """

    @abstractmethod
    def log_prob(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        """log p_σ(x|c) in nats, (B,)."""

    @abstractmethod
    def log_prob_and_score(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> tuple[Tensor, Tensor]:
        """log p_σ(x|c) in nats, (B,), and the score, shaped like x, from one evaluation."""

    @abstractmethod
    def sample(self, sigma: Tensor, cond: Conditioning | None = None, generator: Generators = None) -> Tensor:
        """Exact samples x ~ p_σ(·|c), (B, *shape), one for each entry of sigma (B,)."""

    def compile_for_training(self) -> None:
        # The score is the gradient of log_prob, so log_prob is compiled.
        self.log_prob = torch.compile(self.log_prob)  # type: ignore[method-assign]  # shadows it on this instance


class FlowDensity(Density):
    """A density whose samples are images of base points: x = f⁻¹(z; σ, c), with z ~ N(0, I) or another simple density.

    guidance_orders: the orders in which `sample_guided` can guide; none if the flow cannot be guided.
    normal_base: whether base points are N(0, I), whatever σ and c.
    """

    guidance_orders: tuple[GuidanceOrder, ...] = ()
    normal_base: bool = True

    @abstractmethod
    def encode(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        """The base point z of x, shaped like x; it has the density of the base if x ~ p_σ(·|c)."""

    @abstractmethod
    def decode(self, z: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        """The sample x of a base point z, shaped like z: the inverse of `encode`; differentiable in z."""

    def log_base(self, z: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        """Log-density of the base at z, (B,) nats, N(0, I) by default: log p_σ(x|c) = log_base(z) + log|det ∂z/∂x|."""
        return sum_except_batch(-0.5 * (z**2 + math.log(2 * math.pi)))

    def sample_guided(
        self,
        sigma: Tensor,
        cond: Conditioning,
        null: Conditioning,
        weight: float,
        order: GuidanceOrder,
        generator: Generators = None,
    ) -> Tensor:
        """Samples (B, *shape) of a flow that is guided inside its inverse, see flowdiff/models/flows/guided.py.

        From the same generator they have the base points of `sample`.

        Args:
            sigma: noise levels, (B,).
            cond: the condition of B samples.
            null: the null condition of B samples.
            weight: w of p_c^{1+w}/p_∅^w, ≥ −1.
            order: one of `guidance_orders`.
            generator: as in `sample`.
        """
        raise NotImplementedError


class NoisyClassifier(Network):
    """A classifier of noised samples; the network's output is the score of a Gaussian guided by the classifier.

    F = ∇ₓ [log N(x; μ, Σ + σ²I) + log p(c|x, σ)]
    """

    @abstractmethod
    def class_log_prob(self, x: Tensor, sigma: Tensor) -> Tensor:
        """log p(c|x, σ) for each of the C classes, (B, C) nats, for x (B, *shape) and sigma (B,) > 0."""

    def compile_for_training(self) -> None:
        self.class_log_prob = torch.compile(self.class_log_prob)  # type: ignore[method-assign]  # on this instance


class AutoencoderNetwork(Network):
    """An autoencoder with a prior, which reconstructs and samples; D is the reconstruction, at every σ.

    F = (D − x)/σ²
    """

    autoencoder: Autoencoder

    @abstractmethod
    def from_prior(self, n: int, generator: Generators = None) -> Tensor:
        """n samples E[x|ℓ] with latents ℓ ~ N(0, I): (n, *shape)."""


class ImageTextNetwork(Network):
    """Embeddings of images and captions in one space, in which an image is near to its captions; it does not denoise.

    F = 0, so that D = x
    """

    def forward(self, x: Tensor, c_noise: Tensor, cond: Conditioning | None = None) -> Tensor:
        return torch.zeros_like(x)

    @abstractmethod
    def embed_images(self, x: Tensor) -> Tensor:
        """Unit vectors of clean images x (B, *shape), (B, E)."""

    @abstractmethod
    def embed_texts(self, cond: Conditioning) -> Tensor:
        """Unit vectors of the captions of conditioner=word_ids, (B, E)."""

    @property
    @abstractmethod
    def scale(self) -> Tensor:
        """What cosines are multiplied by, a scalar: 1/temperature."""

    @abstractmethod
    def save(self, folder: Path, vocabulary: Tokenizer, max_length: int) -> None:
        """Write the model in the format of transformers, with the vocabulary and the number of words that are read."""
