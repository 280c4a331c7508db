"""TarFlow: an autoregressive flow over patches whose conditioner is a causal transformer.

The sample is T tokens x_0 … x_{T−1} of d numbers each: patches of an image, or segments of a vector. One block:

    (o_i, b_i) = g_i(x_0 … x_{i−1}; e),   a_i = c·tanh(o_i/c)
    z_i = (x_i − b_i)·e^{−a_i},           log|det ∂z/∂x| = −Σ a

e is the embedding of (¼ ln σ, c). Data → base runs over all tokens at once; base → data, x_i = z_i·e^{a_i} + b_i, needs
the tokens before i first. Every second block takes the tokens in reversed order.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from flowdiff.errors import ConfigurationError
from flowdiff.models.activations import Activation
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.flows.base import Flow, embedding
from flowdiff.models.flows.gate import gated
from flowdiff.models.flows.guided import guided_inverse, weight_at
from flowdiff.models.nn.control import Control, Controllable, HintPart, with_residuals
from flowdiff.models.nn.embeddings import condition_tokens
from flowdiff.models.nn.inject import Inject
from flowdiff.models.nn.sdpa import may_fuse
from flowdiff.models.nn.transformer import Context, ControlledReader, PastControl, PastTransformer
from flowdiff.registry import register

MAX_TOKENS = 50  # with patch=null: attention costs O(T²) and the inverse T steps


@register("flow", "tarflow")
class TarFlow(Flow):
    """Autoregressive affine maps of the patch tokens by causal transformers, for images and vectors.

    z = (f_K ∘ … ∘ f_1)(x),  f_k: z_i = (x_i − b_i)·e^{−a_i},  (a_i, b_i) from x_0 … x_{i−1} and (σ, c)

    The flow starts as the identity and is as smooth as its activation.

    Nothing is scaled by more than e^scale_bound, and the gradient of a score loss by no more than e^{4·scale_bound}. At
    16 the sum of squares that gradient clipping computes overflows float32, which first stops the training and then
    gives NaN; at 8 it does not. Pixels of 8 bits with the noise of σ = 0.002 need 5.6.

    inject: e sets every normalisation (AdaLN) in all three, and film reads nothing else. With concat e and the
    condition tokens also precede the sequence, and every token attends to them. With cross_attention a separate
    attention reads them in every layer.

    inverse: cache computes one token after the other and keeps their keys and values; jacobi computes all tokens from
    the previous iterate until no number of a sample moves by more than tolerance·(1 + |x|), or T sweeps have made it
    exact; auto is jacobi on accelerators and cache on a CPU. With autograd on it is always cache, which is
    differentiable.

    Args:
        shape: shape of one sample, (D,) or (C, H, W).
        embed_dim: width of the embedding e = cond.vector (B, embed_dim).
        activation: nonlinearity of the transformers.
        token_dim: width of cond.tokens (B, L, token_dim), 0 without tokens.
        n_flows: blocks K, ≥ 1.
        patch: side of a square patch, or numbers per token of a vector; None: the smallest with at most 50 tokens.
        hidden: width of the transformers, ≥ 1, a multiple of heads.
        heads: attention heads, ≥ 1.
        n_layers: layers of every block but the last, ≥ 1.
        deep_layers: layers of the last block, next to the base, ≥ 1.
        scale_bound: bound > 0 of |Σ a| over the blocks, in nats; the share of a block is c = scale_bound/K.
        inject: what the transformers read besides e, film | concat | cross_attention.
        inverse: auto | cache | jacobi, as above.
        tolerance: how far a number may still move in a sweep of jacobi, relative to 1 + |x|, > 0.
        checkpoint: recompute the layers in the backward pass instead of storing their activations.

    Raises:
        ConfigurationError: patch does not divide the sample or leaves one token, or heads does not divide hidden.

    Source: Zhai et al., Normalizing Flows are Capable Generative Models, 2024; start token and deep–shallow layers: Gu
    et al., STARFlow: Scaling Latent Normalizing Flows for High-resolution Image Synthesis, 2025.
    """

    takes_gate = True
    forward_differentiable = False
    guidance_orders = ("all", "token")
    inverse_by = "token by token, or Jacobi iteration"

    def __init__(
        self,
        shape: tuple[int, ...],
        embed_dim: int,
        activation: Activation,
        token_dim: int = 0,
        *,
        n_flows: PositiveInt,
        patch: PositiveInt | None,
        hidden: PositiveInt,
        heads: PositiveInt,
        n_layers: PositiveInt,
        deep_layers: PositiveInt,
        scale_bound: PositiveFloat,
        inject: Inject,
        inverse: Literal["auto", "cache", "jacobi"],
        tolerance: PositiveFloat,
        checkpoint: bool,
    ):
        super().__init__()
        if hidden % heads:
            raise ConfigurationError(
                f"flow.hidden={hidden} is not a multiple of flow.heads={heads}: take a multiple of {heads} as width."
            )
        self.patches = Patches(tuple(shape), patch)
        self.condition = BlockCondition(embed_dim, token_dim, hidden, inject)
        self.inverse_method = inverse
        self.tolerance = tolerance
        T, d = self.patches.length, self.patches.width
        self.blocks = nn.ModuleList(
            Block(
                PastTransformer(T, d, 2 * d, hidden, heads, layers, embed_dim, activation, inject, checkpoint),
                scale_bound / n_flows,
                reverse=k % 2 == 1,
                embed_dim=embed_dim,
                grid=self.patches.grid,
            )
            for k, layers in enumerate([n_layers] * (n_flows - 1) + [deep_layers])
        )

    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        fused = may_fuse(x)
        own, context = self.condition(cond)
        u, logdet = self.patches.split(x), x.new_zeros(len(x))
        for block in self.blocks:
            u, term = block(u, own, context, fused)
            logdet = logdet + term
        return self.patches.join(u), logdet

    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        own, context = self.condition(cond)
        u, logdet = self.patches.split(z), z.new_zeros(len(z))
        for block in reversed(self.blocks):
            assert isinstance(block, Block)  # nn.ModuleList does not keep the type of its elements
            if self._use_jacobi(z) and cond.guidance is None:  # which stops a sample without its pair
                u, term = block.inverse_jacobi(u, own, context, self.tolerance)
            else:
                u, term = block.inverse_sequential(u, own, context, may_fuse(z))
            logdet = logdet + term
        return self.patches.join(u), logdet

    def _use_jacobi(self, z: Tensor) -> bool:
        if torch.is_grad_enabled():
            return False
        return self.inverse_method == "jacobi" or (self.inverse_method == "auto" and z.device.type != "cpu")


class Block(nn.Module, Controllable):
    """One autoregressive affine map of the tokens x (B, T, d).

    z_i = (x_i − b_i)·e^{−a_i},  (o_i, b_i) = net_i(x_0 … x_{i−1}; e),  a_i = c·tanh(o_i/c)

    Of the condition `cond` it reads the vector e, the gate, which multiplies o and b, and the guidance of its inverse.

    Args:
        net: the causal transformer.
        scale_bound: c > 0, in nats.
        reverse: take the tokens from the last to the first.
        embed_dim: width of e.
        grid: rows and columns of the tokens of an image; None for a vector.
    """

    def __init__(
        self,
        net: PastTransformer,
        scale_bound: float,
        reverse: bool,
        embed_dim: int,
        grid: tuple[int, int] | None,
    ):
        super().__init__()
        self.embed_dim = embed_dim
        self.grid = grid
        self.controls = nn.ModuleList()
        self.net = net
        self.scale_bound = scale_bound
        self.reverse = reverse

    def make_control(self, part: HintPart) -> Control:
        return PastControl(self.net, part, self.embed_dim, self.grid, self.reverse)

    def forward(self, x: Tensor, cond: Conditioning, context: Context | None, fused: bool) -> tuple[Tensor, Tensor]:
        """x → z, log|det ∂z/∂x| (B,)."""
        x = self._order(x)
        a, b = self._scale_shift(self._output(x, cond, context, fused), cond)
        return self._order((x - b) * torch.exp(-a)), -a.sum((1, 2))

    def inverse_sequential(
        self, z: Tensor, cond: Conditioning, context: Context | None, fused: bool
    ) -> tuple[Tensor, Tensor]:
        """z → x one token after the other, log|det ∂x/∂z| (B,); differentiable, and guided with cond.guidance."""
        z = self._order(z)
        reader = ControlledReader(self.net, self.active(cond), cond, context, fused)
        tokens: list[Tensor] = []
        logdet = z.new_zeros(len(z))
        for i in range(z.shape[1]):
            a, b = self._scale_shift(reader.after(tokens[-1]) if tokens else reader.first(len(z)), cond)
            if cond.guidance is not None:
                b, a = guided_inverse(b, a, weight_at(cond.guidance, i, z.shape[1]))
            tokens.append(z[:, i] * torch.exp(a) + b)
            logdet = logdet + a.sum(1)
        return self._order(torch.stack(tokens, 1)), logdet

    @torch.no_grad()
    def inverse_jacobi(
        self, z: Tensor, cond: Conditioning, context: Context | None, tolerance: float
    ) -> tuple[Tensor, Tensor]:
        """z → x by Jacobi's iteration x ← z·e^{a(x)} + b(x), log|det ∂x/∂z| (B,).

        After n sweeps the first n tokens are exact. Each sample stops on its own, so that it does not depend on the
        other samples of its batch.
        """
        z = self._order(z)
        x, logdet = z.clone(), z.new_zeros(len(z))
        active = torch.arange(len(z), device=z.device)
        for _ in range(z.shape[1]):
            part = None if context is None else Context(context.tokens[active], context.mask[active])
            own = cond[active]
            a, b = self._scale_shift(self._output(x[active], own, part, True), own)
            new = z[active] * torch.exp(a) + b
            moved = ((new - x[active]).abs() / (1 + new.abs())).amax((1, 2))
            x[active], logdet[active] = new, a.sum((1, 2))
            active = active[~(moved <= tolerance)]  # a NaN stays active to the end
            if not len(active):
                break
        return self._order(x), logdet

    def _output(self, x: Tensor, cond: Conditioning, context: Context | None, fused: bool) -> Tensor:
        """(o, b) of tokens in the block's order."""
        return with_residuals(self.net(x, embedding(cond), context, fused), self.active(cond), x, cond, context, fused)

    def _scale_shift(self, output: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        o, b = gated(output, cond).chunk(2, dim=-1)  # (…, d) each
        return self.scale_bound * torch.tanh(o / self.scale_bound), b

    def _order(self, x: Tensor) -> Tensor:
        return x.flip(1) if self.reverse else x


class BlockCondition(nn.Module):
    """A Conditioning as the blocks use it: without its tokens, and the context of the layers, or None.

    The first token of the context is computed from e, so that the context is never empty, whatever the mask.
    """

    def __init__(self, embed_dim: int, token_dim: int, width: int, inject: Inject):
        super().__init__()
        self.token_dim = token_dim
        reads = inject != "film"
        self.vector = nn.Linear(embed_dim, width) if reads else None
        self.tokens = nn.Linear(token_dim, width) if reads and token_dim else None

    def forward(self, cond: Conditioning) -> tuple[Conditioning, Context | None]:
        e, tokens = embedding(cond), condition_tokens(cond, self.token_dim)
        own = replace(cond, vector=e, tokens=None, mask=None)
        if self.vector is None:
            return own, None
        first = self.vector(e)[:, None]
        seen = torch.ones(len(e), 1, dtype=torch.bool, device=e.device)
        if tokens is None or self.tokens is None:
            return own, Context(first, seen)
        return own, Context(torch.cat([first, self.tokens(tokens)], 1), torch.cat([seen, cond.token_mask()], 1))


class Patches:
    """Samples as tokens (B, T, d) and back: squares of an image, row by row, or segments of a vector.

    Args:
        shape: shape of one sample, (D,) or (C, H, W).
        patch: side of a square, or numbers per token of a vector; None: the smallest with at most 50 tokens.
    """

    def __init__(self, shape: tuple[int, ...], patch: int | None):
        self.shape = shape
        sides = shape[1:] if len(shape) == 3 else shape
        fitting = [p for p in range(1, min(sides) + 1) if all(side % p == 0 for side in sides)]
        sizes = {p: math.prod(sides) // p ** len(sides) for p in fitting}  # patch → tokens
        allowed = [p for p in fitting if sizes[p] > 1]
        if not allowed:
            raise ConfigurationError(
                f"flow=tarflow was given samples of shape {shape}, a single token: it needs at least two "
                "tokens, one after the other, so take flow=linear_activation instead."
            )
        if patch is None:
            patch = next((p for p in allowed if sizes[p] <= MAX_TOKENS), allowed[-1])
        elif patch not in allowed:
            samples = "images of {}×{}" if len(shape) == 3 else "vectors of {} dimensions"
            raise ConfigurationError(
                f"flow.patch={patch} does not cut {samples.format(*sides)} into two or more equal tokens: "
                f"take one of {', '.join(map(str, allowed))}."
            )
        self.patch = patch
        self.grid = (sides[0] // patch, sides[1] // patch) if len(shape) == 3 else None
        self.length = sizes[patch]
        self.width = math.prod(shape) // self.length

    def split(self, x: Tensor) -> Tensor:
        if len(self.shape) != 3:
            return x.unflatten(1, (self.length, self.width))
        p = self.patch
        x = x.unflatten(3, (-1, p)).unflatten(2, (-1, p))  # (B, C, H/p, p, W/p, p)
        return x.permute(0, 2, 4, 1, 3, 5).reshape(len(x), self.length, self.width)

    def join(self, u: Tensor) -> Tensor:
        if len(self.shape) != 3:
            return u.flatten(1)
        p, (C, H, W) = self.patch, self.shape
        u = u.reshape(len(u), H // p, W // p, C, p, p).permute(0, 3, 1, 4, 2, 5)
        return u.reshape(len(u), C, H, W)
