"""RealNVP: affine couplings, each of which moves one half of the dimensions by what it reads off the other.

    z_kept = x_kept,   z_moved = x_moved·e^s + t,   log|det ∂z/∂x| = Σ s
    (a, t) = net(x_kept; e),   s = b·tanh(a/b),     e the embedding of (¼ ln σ, c), b the scale bound

Two couplings share a random split and move its two halves in turn, so that every dimension is transformed;
then a new permutation makes the next split. The last permutation undoes the others.
"""

from __future__ import annotations

import math

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from flowdiff.activations import Activation
from flowdiff.conditioning import Conditioning
from flowdiff.errors import ConfigurationError
from flowdiff.flows.base import Flattened, Flow, Sequential
from flowdiff.nn.mlp import ResidualMLP
from flowdiff.registry import register


@register("flow", "realnvp")
class RealNVP(Flow):
    """Affine couplings over random halves of the dimensions, for vectors and small images (flattened inside).

    z_moved = x_moved·e^s + t, (s, t) from a residual MLP of x_kept that cond.vector steers by FiLM.
    x (B, *shape) → z like x, log-det (B,) in nats. The identity at the start and as smooth as its activation.
    n_flows: number of couplings (1 moves half of the dimensions, 2 all of them); hidden, depth: width and
    residual blocks of each net; scale_bound: |s| stays below it. The splits are drawn from torch's global
    generator and kept in the checkpoint.
    Raises ConfigurationError if a sample has fewer than two dimensions.
    Source: Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", 2017.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        embed_dim: int,
        activation: Activation,
        *,
        n_flows: PositiveInt,
        hidden: PositiveInt,
        depth: PositiveInt,
        scale_bound: PositiveFloat,
    ):
        super().__init__()
        dim = math.prod(shape)
        if dim < 2:
            raise ConfigurationError(
                f"flow=realnvp was given samples of shape {tuple(shape)}: a coupling needs at least two "
                "dimensions to split, so take flow=linear_activation instead."
            )
        flows: list[Flow] = []
        restore = torch.arange(dim)  # where each original dimension stands now
        for i in range(n_flows):
            if i % 2 == 0:
                permutation = Permutation(torch.randperm(dim))
                flows.append(permutation)
                restore = permutation.inverse_order[restore]
            flows.append(AffineCoupling(dim, i % 2 == 1, hidden, depth, embed_dim, activation, scale_bound))
        flows.append(Permutation(restore))
        self.flow = Flattened(Sequential(flows))

    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        return self.flow(x, cond)

    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        return self.flow.inverse(z, cond)


class Permutation(Flow):
    """z_i = x_{order(i)} for vectors x (B, D), a fixed order; log-det 0."""

    def __init__(self, order: Tensor):
        super().__init__()
        self.register_buffer("order", order)
        self.register_buffer("inverse_order", order.argsort())

    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        return x.index_select(1, self.order), x.new_zeros(len(x))

    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        return z.index_select(1, self.inverse_order), z.new_zeros(len(z))


class AffineCoupling(Flow):
    """One half of x (B, D) scaled and shifted by a net of the other: the second half, or the `first`."""

    def __init__(
        self,
        dim: int,
        first: bool,
        hidden: int,
        depth: int,
        embed_dim: int,
        activation: Activation,
        scale_bound: float,
    ):
        super().__init__()
        self.first = first
        self.sizes = [dim // 2, dim - dim // 2]
        moved, kept = self.sizes if first else self.sizes[::-1]
        self.scale_bound = scale_bound
        self.net = ResidualMLP(kept, 2 * moved, hidden, depth, embed_dim, activation)

    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        kept, moved = self._split(x)
        s, t = self._scale_shift(kept, cond)
        return self._join(kept, moved * s.exp() + t), s.sum(1)

    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        kept, moved = self._split(z)
        s, t = self._scale_shift(kept, cond)
        return self._join(kept, (moved - t) * (-s).exp()), -s.sum(1)

    def _scale_shift(self, kept: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        a, t = self.net(kept, cond.vector).chunk(2, dim=1)  # (B, moved) each
        return self.scale_bound * torch.tanh(a / self.scale_bound), t

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        head, tail = x.split(self.sizes, dim=1)
        return (tail, head) if self.first else (head, tail)

    def _join(self, kept: Tensor, moved: Tensor) -> Tensor:
        return torch.cat([moved, kept] if self.first else [kept, moved], dim=1)
