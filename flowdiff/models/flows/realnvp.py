"""RealNVP: affine couplings; each transforms one half of the dimensions with parameters from a net of the other half.

    z_kept = x_kept,   z_moved = x_moved·e^s + t,   log|det ∂z/∂x| = Σ s
    (a, t) = net(x_kept; e),   s = b·tanh(a/b),     e the embedding of (¼ ln σ, c), b the scale bound

Two couplings share a split and transform one half each, so that every dimension is transformed; then a new permutation
makes the next split. The last permutation undoes the others.
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
    """Affine couplings: over random halves of a vector, or multi-scale with checkerboard and channel masks for images.

    z_moved = x_moved·e^s + t,  (s, t) from a residual net of x_kept and (σ, c),  log|det ∂z/∂x| = Σ s

    The flow starts as the identity and is as smooth as its activation. The halves are drawn from torch's global
    generator and kept in the state dict. flowdiff/models/flows/multiscale.py describes the image form.

    Args:
        shape: shape of one sample, (D,) or (C, H, W).
        embed_dim: width of the embedding e = cond.vector (B, embed_dim).
        activation: nonlinearity of the nets.
        token_dim: width of cond.tokens (B, L, token_dim), read by inject=cross_attention; 0 without tokens.
        form: vector | image | auto; auto is image for images with even sides and more than 256 dimensions.
        n_flows: couplings, of each level for images, ≥ 1; two of them transform every dimension once.
        levels: scales of form=image, ≥ 1, each halves the sides; None: as many as the sides allow, at most 3.
        hidden: width of each coupling's net, ≥ 1.
        depth: residual blocks of each coupling's net, ≥ 1.
        scale_bound: bound > 0 of |s|, in nats per coupling.
        inject: how (σ, c) enters the nets, film | concat | cross_attention.
        checkpoint: recompute each coupling in the backward pass instead of storing its activations.

    Raises:
        ConfigurationError: a vector has fewer than two dimensions, or the sides of an image cannot be halved.

    Source: Dinh, Sohl-Dickstein, Bengio, Density estimation using Real NVP, 2017.
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
