"""A classifier of noised samples, p(c|x, σ), in the place of a network: what it makes of x is a denoiser, too.

y = A_σ (x − μ)                          whitening, exact and affine
log p(c|x, σ) = log softmax_c h(y; e)    a net, e the embedding of ¼ ln σ
s = ∇ₓ [−½‖y‖² + log p(c|x, σ)]          the score of the Gaussian fit of the data, led towards class c

The Gaussian stands in for the density of all classes, so D = x + σ²·s is the Wiener filter guided by the classifier:
its samples show what the classifier takes a class to be, and no more.
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
from flowdiff.models.networks.base import NoisyClassifier
from flowdiff.models.networks.whitening import Whitening
from flowdiff.models.nn.embeddings import ConditionEmbedding
from flowdiff.models.nn.mlp import ResidualMLP
from flowdiff.models.nn.residual import NetSettings
from flowdiff.registry import register
from flowdiff.shapes import sum_except_batch


@register("network", "classifier")
class Classifier(NoisyClassifier):
    """Residual MLP on whitened samples of any shape, for small images and vectors; it says 1/C at the start.

    x (B, *shape) noised data, sigma (B,) > 0, cond.vector (B, C) the class as conditioner=one_hot gives it, zeros where
    it is unknown. Trained by loss=cross_entropy; a guide for guidance=classifier. Its output is a score: scaling=score.
    width, depth: of the residual blocks; embed_dim: width of the embedding of σ.
    Raises ConfigurationError where the condition is not the class itself.
    Source: Dhariwal, Nichol, Diffusion models beat GANs on image synthesis, 2021 (the guidance).
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
                "network=classifier has to be told the class itself: take conditioner=one_hot, and a dataset that has "
                "classes."
            )
        self.whitening = whitening
        self.embedding = ConditionEmbedding(embed_dim, cond_dim=0)
        settings = NetSettings(width, depth, embed_dim, activation, "film")
        self.net = ResidualMLP(math.prod(shape), num_classes, settings)

    def fit(self, batches: Iterable[Tensor]) -> None:
        """Measure the whitening's statistics."""
        self.whitening.fit(batches)

    def class_log_prob(self, x: Tensor, sigma: Tensor) -> Tensor:
        """log p(c|x, σ) of every class, (B, C) nats."""
        return self._class_log_prob(self.whitening(x, sigma)[0], sigma)

    def forward(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        """s, shaped like x; carries a graph to the parameters only while training."""
        differentiable = self.training and torch.is_grad_enabled()
        with torch.enable_grad():
            inner = x.detach().clone().requires_grad_(True)
            y, _ = self.whitening(inner, sigma)
            log_prob = -0.5 * sum_except_batch(y**2)
            if cond is not None:
                log_prob = log_prob + (cond.vector * self._class_log_prob(y, sigma)).sum(1)
            (score,) = torch.autograd.grad(log_prob.sum(), inner, create_graph=differentiable)
        return score

    def _class_log_prob(self, y: Tensor, sigma: Tensor) -> Tensor:
        return self.net(y.flatten(1), self.embedding(0.25 * sigma.log())).log_softmax(1)
