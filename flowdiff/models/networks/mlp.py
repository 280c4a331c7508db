"""A residual MLP on flattened samples, F(x, c_noise, c): the raw network to compare vector flows with."""

from __future__ import annotations

import math

from pydantic import PositiveInt
from torch import Tensor

from flowdiff.models.activations import Activation
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.networks.base import Network
from flowdiff.models.nn.embeddings import ConditionEmbedding
from flowdiff.models.nn.mlp import ResidualMLP
from flowdiff.models.nn.residual import NetSettings
from flowdiff.registry import register


@register("network", "mlp")
class MLP(Network):
    """Residual MLP with FiLM on the embedding of (c_noise, c), for samples of any shape; F = 0 at the start.

    h ← h + W₂ act(FiLM(W₁ act(h), e)),  e = embedding of (c_noise, cond.vector, mean of cond.tokens)

    Args:
        shape: shape of one sample, flattened to D = prod(shape) dimensions.
        cond_dim: width of cond.vector (B, cond_dim), 0 without a vector.
        activation: nonlinearity of the residual blocks.
        token_dim: width of cond.tokens (B, L, token_dim), 0 without tokens.
        width: width of the residual blocks, ≥ 1.
        depth: number of residual blocks, ≥ 1.
        embed_dim: width of the embedding e, ≥ 1.

    Source: He, Zhang, Ren, Sun, Identity mappings in deep residual networks, 2016, for the residual block.
    """

    takes_hint = True

    def __init__(
        self,
        shape: tuple[int, ...],
        cond_dim: int,
        activation: Activation,
        token_dim: int = 0,
        *,
        width: PositiveInt,
        depth: PositiveInt,
        embed_dim: PositiveInt,
    ):
        super().__init__()
        dim = math.prod(shape)
        self.embedding = ConditionEmbedding(embed_dim, cond_dim, token_dim)
        self.net = ResidualMLP(dim, dim, NetSettings(width, depth, embed_dim, activation, "film"))

    def forward(self, x: Tensor, c_noise: Tensor, cond: Conditioning | None = None) -> Tensor:
        return self.net(x.flatten(1), self.embedding(c_noise, cond)).view_as(x)
