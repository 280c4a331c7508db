"""A residual MLP on flattened samples, F(x, c_noise, c): the unconstrained counterpart of a vector flow."""

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

    x (B, *shape), c_noise (B,) of any scaling, cond.vector (B, cond_dim) or none if cond_dim = 0, and
    of cond.tokens (B, L, token_dim), if there are any, their mean → F like x.
    width, depth: of the residual blocks; embed_dim: width of the embedding.
    Source: He et al., "Identity Mappings in Deep Residual Networks", 2016 (the residual form).
    """

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
