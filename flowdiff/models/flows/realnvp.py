"""RealNVP: affine couplings, each of which moves one half of the dimensions by what it reads off the other.

    z_kept = x_kept,   z_moved = x_moved·e^s + t,   log|det ∂z/∂x| = Σ s
    (a, t) = net(x_kept; e),   s = b·tanh(a/b),     e the embedding of (¼ ln σ, c), b the scale bound

Two couplings share a split and move its two halves in turn, so that every dimension is transformed; then a new
permutation makes the next split. The last permutation undoes the others.
"""

from __future__ import annotations

from pydantic import PositiveFloat, PositiveInt

from flowdiff.models.activations import Activation
from flowdiff.models.flows.coupling import Affine
from flowdiff.models.flows.multiscale import CouplingFlow, Form
from flowdiff.models.nn.inject import Inject
from flowdiff.models.nn.residual import NetSettings
from flowdiff.registry import register


@register("flow", "realnvp")
class RealNVP(CouplingFlow):
    """Affine couplings, of vectors over random halves, of images multi-scale with checkerboard and channel masks.

    z_moved = x_moved·e^s + t, (s, t) from a residual net of x_kept that knows (σ, c). x (B, *shape) → z like x, log-det
    (B,) in nats. The identity at the start and as smooth as its activation.
    form: `vector` flattens samples of any shape; `image` squeezes (C, H, W) (flowdiff/models/flows/multiscale.py); `auto` is
    `image` for images of even sides and more than 256 dimensions. n_flows: number of couplings (1 moves half of the
    dimensions, 2 all of them), in an image of each level; levels: of an image, null for as many as its sides allow;
    hidden, depth: width and residual blocks of each net; scale_bound: |s| stays below it; inject: how (σ, c) enters the
    nets; checkpoint: compute each coupling again in the backward pass (flowdiff/models/nn/recompute.py). The splits are drawn
    from torch's global generator and kept in the checkpoint.
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
        form: Form,
        n_flows: PositiveInt,
        levels: PositiveInt | None,
        hidden: PositiveInt,
        depth: PositiveInt,
        scale_bound: PositiveFloat,
        inject: Inject,
        checkpoint: bool,
    ):
        nets = NetSettings(hidden, depth, embed_dim, activation, inject, token_dim)
        super().__init__("realnvp", shape, form, n_flows, levels, Affine(scale_bound), nets, scale_bound, checkpoint)
