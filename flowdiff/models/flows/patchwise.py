"""Patchwise flow: one flow of a patch, shared by all patches of an image, conditioned on place and previous patches.

The image is T patches x_0 … x_{T−1} of d = C·p·p numbers, row by row. With f a flow of d numbers,

    z_i = f(x_i; v_i),   log|det ∂z/∂x| = Σ_i log|det ∂z_i/∂x_i|
    v_i = u + act(W u),  u = e + position_i + h_i

e is the embedding of (¼ ln σ, c). With context=causal h_i = h(x_0 … x_{i−1}; e) is the output of a causal transformer,
so that ∂z/∂x is block triangular and log p(x) = Σ log p(x_i | x_0 … x_{i−1}) is the exact chain rule; with context=none
h_i = 0 and the patches are independent, given σ and c. Data → base runs over all patches at once; base → data, with
context=causal, runs patch by patch.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from flowdiff.errors import ConfigurationError
from flowdiff.models.activations import Activation
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.flows.base import Flow, Sequential, embedding
from flowdiff.models.flows.coupling import Affine, vector_couplings
from flowdiff.models.flows.guided import at_token
from flowdiff.models.flows.hybrid import ElementwiseFlow
from flowdiff.models.nn.control import Control, Controllable, HintPart, SeesPartOfHint, with_residuals
from flowdiff.models.nn.embeddings import unit_linear
from flowdiff.models.nn.inject import Inject
from flowdiff.models.nn.mlp import ResidualMLP
from flowdiff.models.nn.residual import NetSettings
from flowdiff.models.nn.sdpa import may_fuse
from flowdiff.models.nn.transformer import ControlledReader, PastControl, PastTransformer
from flowdiff.registry import register

MAX_PATCH = 4  # with patch=null


@register("flow", "patchwise")
class Patchwise(Flow, Controllable, SeesPartOfHint):
    """A flow of a patch applied to every patch of an image: affine couplings whose weights all patches share.

    z_i = f(x_i; σ, c, i, x_0 … x_{i−1}),  log|det ∂z/∂x| = Σ_i log|det ∂z_i/∂x_i|

    The flow starts as the identity and is as smooth as its activation. The halves of the couplings are drawn from
    torch's global generator and kept in the state dict.

    Args:
        shape: shape of one sample, (C, H, W).
        embed_dim: width of the embedding e = cond.vector (B, embed_dim).
        activation: nonlinearity of the nets.
        token_dim: width of cond.tokens (B, L, token_dim), read by inject=cross_attention; 0 without tokens.
        n_flows: couplings of a patch, ≥ 1, after an affine map of each number; if d = 1 there is only that map.
        patch: side p of a patch, a divisor of H and W; None: the largest up to 4 that leaves more than one patch.
        context: causal (a patch is conditioned on all patches before it) | none (on no other patch).
        hidden: width of the couplings' nets and of the causal transformer, ≥ 1, a multiple of heads.
        depth: residual blocks of each coupling's net, ≥ 1.
        heads: attention heads of the causal transformer, ≥ 1.
        n_layers: layers of the causal transformer, ≥ 1; e sets the normalisation of each (AdaLN).
        scale_bound: bound > 0 of the log-scale of each map, in nats.
        inject: how v_i enters the couplings' nets, film | concat | cross_attention; the last also reads cond.tokens.
        checkpoint: recompute the couplings and the layers in the backward pass instead of storing their activations.

    Raises:
        ConfigurationError: the samples are vectors, patch does not divide the sides, or heads does not divide hidden.
    """

    takes_gate = True
    inverse_by = "patch by patch"

    def __init__(
        self,
        shape: tuple[int, ...],
        embed_dim: int,
        activation: Activation,
        token_dim: int = 0,
        *,
        n_flows: PositiveInt,
        patch: PositiveInt | None,
        context: Literal["causal", "none"],
        hidden: PositiveInt,
        depth: PositiveInt,
        heads: PositiveInt,
        n_layers: PositiveInt,
        scale_bound: PositiveFloat,
        inject: Inject,
        checkpoint: bool,
    ):
        super().__init__()
        self.patch = patch_side(shape, patch)
        self.embed_dim = embed_dim
        self.controls = nn.ModuleList()
        self.grid = (shape[1] // self.patch, shape[2] // self.patch)
        T = math.prod(self.grid)
        d = math.prod(shape) // T
        # torch cannot differentiate a softmax forward and then backward.
        self.forward_differentiable = context == "none" and inject != "cross_attention"
        self.activation = activation
        self.position = nn.Parameter(0.5 * torch.randn(T, embed_dim))
        self.mix = unit_linear(embed_dim, embed_dim)
        self.context: PastTransformer | None = None
        if context == "causal" and T > 1:
            if hidden % heads:
                raise ConfigurationError(
                    f"flow.hidden={hidden} is not a multiple of flow.heads={heads}: take a multiple of {heads} as "
                    "width."
                )
            self.context = PastTransformer(
                T, d, embed_dim, hidden, heads, n_layers, embed_dim, activation, "film", checkpoint
            )
        self.guidance_orders = ("all",) if self.context is None else ("all", "token")
        transform = Affine(scale_bound)
        flows: list[Flow] = [ElementwiseFlow((d,), embed_dim, transform)]
        if d > 1:
            net = partial(ResidualMLP, settings=NetSettings(hidden, depth, embed_dim, activation, inject, token_dim))
            flows.append(vector_couplings("patchwise", (d,), n_flows, transform, net, checkpoint))
        self.flow = Sequential(flows)

    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        u, e = self._split(x), embedding(cond)
        h = None
        if self.context is not None:
            fused = may_fuse(x)
            h = with_residuals(self.context(u, e, None, fused), self.active(cond), u, cond, None, fused)
        v = self._patch_vector(e[:, None], self.position, h)  # (B, T, embed_dim)
        z, logdet = self.flow(u.flatten(0, 1), self._conditions(cond, v))
        return self._join(z.view_as(u)), logdet.view(u.shape[:2]).sum(1)

    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        u = self._split(z)
        if self.context is not None:
            x, logdet = self._inverse_causal(self.context, u, cond, may_fuse(z))
            return self._join(x), logdet
        v = self._patch_vector(embedding(cond)[:, None], self.position, None)
        x, logdet = self.flow.inverse(u.flatten(0, 1), self._conditions(cond, v))
        return self._join(x.view_as(u)), logdet.view(u.shape[:2]).sum(1)

    def _inverse_causal(
        self, context: PastTransformer, z: Tensor, cond: Conditioning, fused: bool
    ) -> tuple[Tensor, Tensor]:
        """z → x (B, T, d), patch by patch."""
        e, around = embedding(cond), self._around(cond)
        reader = ControlledReader(context, self.active(cond), cond, None, fused)
        patches: list[Tensor] = []
        logdet = z.new_zeros(len(z))
        for i in range(z.shape[1]):
            h = reader.after(patches[-1]) if patches else reader.first(len(z))
            v = self._patch_vector(e, self.position[i], h)
            own = replace(cond, vector=v, hint=None if around is None else around[:, i])
            patch, term = self.flow.inverse(z[:, i], at_token(own, i, z.shape[1]))
            patches.append(patch)
            logdet = logdet + term
        return torch.stack(patches, 1), logdet

    def make_control(self, part: HintPart) -> Control | None:
        return None if self.context is None else PastControl(self.context, part, self.embed_dim, self.grid)

    def part_inside(self, part: HintPart) -> HintPart:
        channels, height, width = part.shape
        return replace(part, shape=(channels, 3 * (height // self.grid[0]), 3 * (width // self.grid[1])))

    def _around(self, cond: Conditioning) -> Tensor | None:
        """What the flow of each patch reads of the hint: it and its eight neighbours, (B, T, C, 3h, 3w)."""
        if cond.hint is None:
            return None
        sides = (cond.hint.shape[2] // self.grid[0], cond.hint.shape[3] // self.grid[1])
        blocks = F.unfold(cond.hint, (3 * sides[0], 3 * sides[1]), padding=sides, stride=sides)  # (B, C·9·h·w, T)
        return blocks.mT.unflatten(2, (-1, 3 * sides[0], 3 * sides[1]))

    def _conditions(self, cond: Conditioning, v: Tensor) -> Conditioning:
        """The conditions of B·T patches, whose vectors are v (B, T, embed_dim)."""
        around = self._around(cond)
        found = patch_conditions(replace(cond, hint=None), v)
        return found if around is None else replace(found, hint=around.flatten(0, 1))

    def _patch_vector(self, e: Tensor, position: Tensor, h: Tensor | None) -> Tensor:
        """v, the condition of a patch's flow. The map after the sum lets σ, c, place and past interact."""
        u = e + position if h is None else e + position + h
        return u + self.activation.plain(self.mix(u))

    def _split(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, T, d)."""
        # Without F.pixel_unshuffle: compiled by torch 2.15, the gradient of what follows it is wrong.
        u = x.unflatten(3, (-1, self.patch)).unflatten(2, (-1, self.patch))  # (B, C, H/p, p, W/p, p)
        return u.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def _join(self, u: Tensor) -> Tensor:
        """(B, T, d) → (B, C, H, W)."""
        u = u.unflatten(2, (-1, self.patch, self.patch)).unflatten(1, self.grid)  # (B, H/p, W/p, C, p, p)
        return u.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def patch_conditions(cond: Conditioning, v: Tensor) -> Conditioning:
    """The conditions of B·T patches, sample by sample: v (B, T, embed_dim) as vectors, the rest as the sample's."""
    others = {name: part for name, part in vars(cond).items() if part is not None and name != "vector"}
    return Conditioning(v.flatten(0, 1), **{k: part.repeat_interleave(v.shape[1], 0) for k, part in others.items()})


def patch_side(shape: tuple[int, ...], patch: int | None) -> int:
    """The side of a patch: `patch`, or the default for None; raises ConfigurationError if it does not fit."""
    if len(shape) != 3:
        raise ConfigurationError(
            f"flow=patchwise was given samples of shape {tuple(shape)}, which are not images (C, H, W): for vectors "
            "take flow=realnvp or flow=tarflow."
        )
    height, width = shape[1:]
    fitting = [p for p in range(1, min(height, width) + 1) if height % p == width % p == 0]
    if patch is None:
        several = [p for p in fitting if p <= MAX_PATCH and height * width > p * p]
        return max(several, default=1)
    if patch not in fitting:
        raise ConfigurationError(
            f"flow.patch={patch} does not divide the sides of images of {height}×{width}: take one of "
            f"{', '.join(map(str, fitting))}, or resize or pad the images."
        )
    return patch
