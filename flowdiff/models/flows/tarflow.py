"""TarFlow: an autoregressive flow over patches whose conditioner is a causal transformer.

The sample is T tokens x_0 … x_{T−1} of d numbers each: patches of an image, or runs of a vector. One block:

    (o_i, b_i) = g_i(x_0 … x_{i−1}; e),   a_i = c·tanh(o_i/c)
    z_i = (x_i − b_i)·e^{−a_i},           log|det ∂z/∂x| = −Σ a

e is the embedding of (¼ ln σ, c). Data → base runs over all tokens at once; base → data, x_i = z_i·e^{a_i} + b_i, needs
the tokens before i first. Odd blocks take the tokens in reversed order.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from flowdiff.errors import ConfigurationError
from flowdiff.models.activations import Activation
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.flows.base import Flow
from flowdiff.models.nn.embeddings import condition_tokens
from flowdiff.models.nn.inject import Inject
from flowdiff.models.nn.sdpa import may_fuse
from flowdiff.models.nn.transformer import Context, PastTransformer
from flowdiff.registry import register

MAX_TOKENS = 50  # patch=null stays below: attention costs T² and the inverse T steps


@register("flow", "tarflow")
class TarFlow(Flow):
    """z = (f_K ∘ … ∘ f_1)(x), each f_k an autoregressive affine map of the patch tokens, for images and vectors.

    x (B, C, H, W) or (B, D) → z like x, log-det (B,) in nats. The identity at the start, as smooth as its activation.

    n_flows: blocks K; the last one, next to the base, has deep_layers layers and the others n_layers (deep–shallow).
    patch: side of a square patch, or numbers per token of a vector; null: the smallest that leaves at most 50 tokens.
    hidden, heads: the transformers' width and attention heads. scale_bound: |Σ a| over the blocks stays below it, in
    nats; a block's share is c = scale_bound/K. Nothing is scaled by more than e^scale_bound, and the gradient of a
    score loss by its fourth power: at 16 the squares that clipping adds up overflow float32, which first stops the
    training and then gives NaN; at 8 they do not. Pixels of 8 bits with the noise of σ = 0.002 need 5.6.
    inject: e steers every normalisation (AdaLN) in all three, and is all that `film` reads. `concat`: e and the
    condition tokens also stand before the sequence, every token sees them. `cross_attention`: an attention
    of its own reads them in every layer.
    inverse: `cache` walks the tokens and keeps their keys and values; `jacobi` computes all tokens from the last
    sweep's until no number of a sample moves by more than tolerance·(1 + |x|), or T sweeps have made it exact; `auto`
    is jacobi on accelerators and cache on a CPU. Where autograd is on it is always the walk, which it can follow.
    checkpoint: compute the layers again in the backward pass (flowdiff/models/nn/recompute.py). token_dim: width of
    cond.tokens, 0 for none.

    Raises ConfigurationError if patch does not divide the sample or leaves one token, or heads does not divide hidden.
    Source: Zhai et al., "Normalizing Flows are Capable Generative Models", 2024; start token and deep–shallow layers:
    Gu et al., "STARFlow: Scaling Latent Normalizing Flows for High-resolution Image Synthesis", 2025.
    """

    forward_differentiable = False
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
                f"flow.hidden={hidden} cannot be shared by flow.heads={heads}: take a multiple of {heads} as the width."
            )
        self.patches = Patches(tuple(shape), patch)
        self.condition = Condition(embed_dim, token_dim, hidden, inject)
        self.inverse_method = inverse
        self.tolerance = tolerance
        T, d = self.patches.length, self.patches.width
        self.blocks = nn.ModuleList(
            Block(
                PastTransformer(T, d, 2 * d, hidden, heads, layers, embed_dim, activation, inject, checkpoint),
                scale_bound / n_flows,
                reverse=k % 2 == 1,
            )
            for k, layers in enumerate([n_layers] * (n_flows - 1) + [deep_layers])
        )

    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        fused = may_fuse(x)
        condition = self.condition(cond)
        u, logdet = self.patches.split(x), x.new_zeros(len(x))
        for block in self.blocks:
            u, term = block(u, *condition, fused)
            logdet = logdet + term
        return self.patches.join(u), logdet

    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        condition = self.condition(cond)
        u, logdet = self.patches.split(z), z.new_zeros(len(z))
        for block in reversed(self.blocks):
            if self._sweeps(z):
                u, term = block.sweep(u, *condition, self.tolerance)
            else:
                u, term = block.walk(u, *condition, may_fuse(z))
            logdet = logdet + term
        return self.patches.join(u), logdet

    def _sweeps(self, z: Tensor) -> bool:
        if torch.is_grad_enabled():
            return False
        return self.inverse_method == "jacobi" or (self.inverse_method == "auto" and z.device.type != "cpu")


class Block(nn.Module):
    """One autoregressive affine map of the tokens x (B, T, d), from the first to the last or, reversed, back."""

    def __init__(self, net: PastTransformer, scale_bound: float, reverse: bool):
        super().__init__()
        self.net = net
        self.scale_bound = scale_bound
        self.reverse = reverse

    def forward(self, x: Tensor, e: Tensor, context: Context | None, fused: bool) -> tuple[Tensor, Tensor]:
        """x → z, log|det ∂z/∂x| (B,)."""
        x = self._order(x)
        a, b = self._scale_shift(self.net(x, e, context, fused))
        return self._order((x - b) * torch.exp(-a)), -a.sum((1, 2))

    def walk(self, z: Tensor, e: Tensor, context: Context | None, fused: bool) -> tuple[Tensor, Tensor]:
        """z → x token by token, log|det ∂x/∂z| (B,); differentiable."""
        z = self._order(z)
        reader = self.net.reader(e, context, fused)
        tokens, logdet = [], z.new_zeros(len(z))
        for i in range(z.shape[1]):
            a, b = self._scale_shift(reader.after(tokens[-1]) if tokens else reader.first(len(z)))
            tokens.append(z[:, i] * torch.exp(a) + b)
            logdet = logdet + a.sum(1)
        return self._order(torch.stack(tokens, 1)), logdet

    @torch.no_grad()
    def sweep(self, z: Tensor, e: Tensor, context: Context | None, tolerance: float) -> tuple[Tensor, Tensor]:
        """z → x by Jacobi's iteration x ← z·e^{a(x)} + b(x), log|det ∂x/∂z| (B,).

        After n sweeps the first n tokens are exact. Each sample stops by itself, so that it does not depend on its
        batch.
        """
        z = self._order(z)
        x, logdet = z.clone(), z.new_zeros(len(z))
        active = torch.arange(len(z), device=z.device)
        for _ in range(z.shape[1]):
            part = None if context is None else Context(context.tokens[active], context.mask[active])
            a, b = self._scale_shift(self.net(x[active], e[active], part, True))
            new = z[active] * torch.exp(a) + b
            moved = ((new - x[active]).abs() / (1 + new.abs())).amax((1, 2))
            x[active], logdet[active] = new, a.sum((1, 2))
            active = active[~(moved <= tolerance)]  # a NaN goes on to the end
            if not len(active):
                break
        return self._order(x), logdet

    def _scale_shift(self, output: Tensor) -> tuple[Tensor, Tensor]:
        o, b = output.chunk(2, dim=-1)  # (…, d) each
        return self.scale_bound * torch.tanh(o / self.scale_bound), b

    def _order(self, x: Tensor) -> Tensor:
        return x.flip(1) if self.reverse else x


class Condition(nn.Module):
    """A Conditioning as the blocks take it: the embedding e (B, embed_dim) and the context that layers read, or None.

    The context's first token is made of e, so that it is never empty, whatever the mask.
    """

    def __init__(self, embed_dim: int, token_dim: int, width: int, inject: Inject):
        super().__init__()
        self.token_dim = token_dim
        reads = inject != "film"
        self.vector = nn.Linear(embed_dim, width) if reads else None
        self.tokens = nn.Linear(token_dim, width) if reads and token_dim else None

    def forward(self, cond: Conditioning) -> tuple[Tensor, Context | None]:
        e, tokens = cond.vector, condition_tokens(cond, self.token_dim)
        if self.vector is None:
            return e, None
        own = self.vector(e)[:, None]
        seen = torch.ones(len(e), 1, dtype=torch.bool, device=e.device)
        if tokens is None:
            return e, Context(own, seen)
        return e, Context(torch.cat([own, self.tokens(tokens)], 1), torch.cat([seen, cond.counts()], 1))


class Patches:
    """Samples as tokens (B, T, d) and back: squares of an image, row by row, or runs of a vector."""

    def __init__(self, shape: tuple[int, ...], patch: int | None):
        self.shape = shape
        sides = shape[1:] if len(shape) == 3 else shape
        fitting = [p for p in range(1, min(sides) + 1) if all(side % p == 0 for side in sides)]
        sizes = {p: math.prod(sides) // p ** len(sides) for p in fitting}  # patch → tokens
        allowed = [p for p in fitting if sizes[p] > 1]
        if not allowed:
            raise ConfigurationError(
                f"flow=tarflow was given samples of shape {shape}, a single token: it needs two dimensions to "
                "read one after the other, so take flow=linear_activation instead."
            )
        if patch is None:
            patch = next((p for p in allowed if sizes[p] <= MAX_TOKENS), allowed[-1])
        elif patch not in allowed:
            what = "images of {}×{}" if len(shape) == 3 else "vectors of {} dimensions"
            raise ConfigurationError(
                f"flow.patch={patch} does not cut {what.format(*sides)} into two or more equal tokens: "
                f"take one of {', '.join(map(str, allowed))}."
            )
        self.patch = patch
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
