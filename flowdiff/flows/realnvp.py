"""RealNVP: affine couplings, each of which moves one half of the dimensions by what it reads off the other.

    z_kept = x_kept,   z_moved = x_moved·e^s + t,   log|det ∂z/∂x| = Σ s
    (a, t) = net(x_kept; e),   s = b·tanh(a/b),     e the embedding of (¼ ln σ, c), b the scale bound

Two couplings share a split and move its two halves in turn, so that every dimension is transformed; then a new
permutation makes the next split. The last permutation undoes the others.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from flowdiff.activations import Activation
from flowdiff.conditioning import Conditioning
from flowdiff.flows.base import Flow
from flowdiff.flows.coupling import Affine, NetFactory, vector_couplings
from flowdiff.flows.multiscale import image_couplings, image_levels
from flowdiff.nn.conv import ResidualConv
from flowdiff.nn.inject import Inject
from flowdiff.nn.mlp import ResidualMLP
from flowdiff.registry import register

LARGEST_VECTOR = 256  # dimensions up to which form=auto takes an image as a vector


@register("flow", "realnvp")
class RealNVP(Flow):
    """Affine couplings, of vectors over random halves, of images multi-scale with checkerboard and channel masks.

    z_moved = x_moved·e^s + t, (s, t) from a residual net of x_kept that knows (σ, c). x (B, *shape) → z like x, log-det
    (B,) in nats. The identity at the start and as smooth as its activation.
    form: `vector` flattens samples of any shape; `image` squeezes (C, H, W) (flowdiff/flows/multiscale.py); `auto` is
    `image` for images of even sides and more than 256 dimensions. n_flows: number of couplings (1 moves half of the
    dimensions, 2 all of them), in an image of each level; levels: of an image, null for as many as its sides allow;
    hidden, depth: width and residual blocks of each net; scale_bound: |s| stays below it; inject: how (σ, c) enters
    the nets. The splits are drawn from torch's global generator and kept in the checkpoint.
    Raises ConfigurationError if a vector has fewer than two dimensions or an image's sides cannot be halved.
    Source: Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", 2017.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        embed_dim: int,
        activation: Activation,
        token_dim: int = 0,
        *,
        form: Literal["auto", "vector", "image"],
        n_flows: PositiveInt,
        levels: PositiveInt | None,
        hidden: PositiveInt,
        depth: PositiveInt,
        scale_bound: PositiveFloat,
        inject: Inject,
    ):
        super().__init__()
        transform = Affine(scale_bound)

        def mlp(kept: int, out: int) -> nn.Module:
            return ResidualMLP(kept, out, hidden, depth, embed_dim, activation, inject, token_dim)

        def conv(grid: tuple[int, int]) -> NetFactory:
            return lambda kept, out: ResidualConv(kept, out, hidden, depth, embed_dim, activation, inject, token_dim)

        if form == "image" or (form == "auto" and large_even_image(shape)):
            levels = image_levels("realnvp", shape, levels)
            self.flow = image_couplings(shape, levels, n_flows, transform, conv, scale_bound)
        else:
            self.flow = vector_couplings("realnvp", shape, n_flows, transform, mlp)

    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        return self.flow(x, cond)

    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        return self.flow.inverse(z, cond)


def large_even_image(shape: tuple[int, ...]) -> bool:
    """Whether form=auto takes samples of `shape` as images: sides that can be halved, over 256 dimensions."""
    return len(shape) == 3 and shape[1] % 2 == shape[2] % 2 == 0 and math.prod(shape) > LARGEST_VECTOR
