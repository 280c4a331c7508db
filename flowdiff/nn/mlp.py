"""The residual net of vectors: its linear maps are matrices."""

from __future__ import annotations

from typing import final

from torch import nn

from flowdiff.activations import Activation
from flowdiff.nn.inject import Inject
from flowdiff.nn.residual import ResidualNet


@final
class ResidualMLP(ResidualNet):
    """x (B, in_features), cond → (B, out_features), zero at the start, any x."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        width: int,
        depth: int,
        embed_dim: int,
        activation: Activation,
        inject: Inject,
        token_dim: int = 0,
    ):
        super().__init__(
            in_features, out_features, width, depth, embed_dim, activation, inject, token_dim, nn.Linear, nn.Linear
        )
