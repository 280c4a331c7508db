"""A classifier of noised samples, p(c|x, σ), as a network; its output is a score, so it is a denoiser too.

y = A_σ (x − μ)                          whitening, exact and affine
log p(c|x, σ) = log softmax_c h(y; e)    a net, e the embedding of ¼ ln σ
s = ∇ₓ [−½‖y‖² + log p(c|x, σ)]          the score of a Gaussian fit of the data, guided towards class c

The Gaussian replaces the density of all classes, so D = x + σ²·s is the Wiener filter guided by the classifier. Its
samples show only what the classifier has learned about a class.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from pydantic import PositiveInt
from torch import Tensor

from flowdiff.errors import ConfigurationError
from flowdiff.models.activations import Activation
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.networks.base import SCALING_IS_SCORE, NoisyClassifier
from flowdiff.models.networks.whitening import Whitening
from flowdiff.models.nn.embeddings import ConditionEmbedding
from flowdiff.models.nn.mlp import ResidualMLP
from flowdiff.models.nn.residual import NetSettings
from flowdiff.registry import register
from flowdiff.shapes import sum_except_batch


@register("network", "classifier", requires=[SCALING_IS_SCORE])
class Classifier(NoisyClassifier):
    """Classifier of noised samples for guidance=classifier: a residual MLP, trained by loss=cross_entropy.

    log p(c|x, σ) = log softmax_c h(A_σ(x − μ); e),  s = ∇ₓ [−½‖A_σ(x − μ)‖² + log p(c|x, σ)]

    For vectors and small images. At the start every class has probability 1/C. cond.vector (B, C) is the one-hot class
    that conditioner=one_hot gives, or zeros for an unknown class.

    Args:
        shape: shape of one sample, flattened to prod(shape) dimensions.
        cond_dim: width of cond.vector, which must be num_classes.
        num_classes: number of classes C of the dataset, None if it has none.
        whitening: the map x → A_σ(x − μ) in front of the net.
        activation: nonlinearity of the residual blocks.
        width: width of the residual blocks, ≥ 1.
        depth: number of residual blocks, ≥ 1.
        embed_dim: width of the embedding of σ, ≥ 1.

    Raises:
        ConfigurationError: the dataset has no classes, or the condition is not a one-hot vector.

    Source: Dhariwal, Nichol, Diffusion models beat GANs on image synthesis, 2021, for the guidance.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        cond_dim: int,
        num_classes: int | None,
        whitening: Whitening,
        activation: Activation,
        *,
        width: PositiveInt,
        depth: PositiveInt,
        embed_dim: PositiveInt,
    ):
        super().__init__()
        if num_classes is None or cond_dim != num_classes:
            raise ConfigurationError(
                "network=classifier needs the one-hot class as its condition: set conditioner=one_hot and take a "
                "dataset with classes."
            )
        self.whitening = whitening
        self.embedding = ConditionEmbedding(embed_dim, cond_dim=0)
        settings = NetSettings(width, depth, embed_dim, activation, "film")
        self.net = ResidualMLP(math.prod(shape), num_classes, settings)

    def fit(self, batches: Iterable[Tensor]) -> None:
        """Measure the whitening's statistics."""
        self.whitening.fit(batches)

    def class_log_prob(self, x: Tensor, sigma: Tensor) -> Tensor:
        """log p(c|x, σ) for each of the C classes, (B, C) nats."""
        return self._class_log_prob(self.whitening(x, sigma)[0], sigma)

    def forward(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        """s, shaped like x; part of the autograd graph of the parameters only in training."""
        differentiable = self.training and torch.is_grad_enabled()
        with torch.enable_grad():
            inner = x.detach().clone().requires_grad_(True)
            y, _ = self.whitening(inner, sigma)
            log_prob = -0.5 * sum_except_batch(y**2)
            if cond is not None and cond.vector is not None:
                log_prob = log_prob + (cond.vector * self._class_log_prob(y, sigma)).sum(1)
            (score,) = torch.autograd.grad(log_prob.sum(), inner, create_graph=differentiable)
        return score

    def _class_log_prob(self, y: Tensor, sigma: Tensor) -> Tensor:
        return self.net(y.flatten(1), self.embedding(0.25 * sigma.log())).log_softmax(1)
