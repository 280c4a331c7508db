"""A transformer over what came before: the output at token i depends on the tokens u_0 … u_{i−1} and no others.

The sequence goes in shifted by one place behind a learned start token, so that token 0 has something to be read from.
Each layer, with AdaLN(h) = LN(h)·(1 + γ(e)) + β(e), γ and β linear and zero at the start:

    h ← h + Attention(AdaLN(h)),      h ← h + W₂ act(W₁ AdaLN(h))

C^∞ in u where the activation is: LN divides by √(var + ε), so its derivatives are bounded by powers of 1/√ε. Queries
and keys are normalised too, so that attention logits stay within √d times learned gains (Dehghani et al., "Scaling
Vision Transformers to 22 Billion Parameters", 2023).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowdiff.models.activations import Activation
from flowdiff.models.nn.inject import Inject, zero_init
from flowdiff.models.nn.recompute import call
from flowdiff.models.nn.sdpa import attention

EPS = 1e-4  # under the root of every normalisation, whose input has a variance of order one: gain at most 100


@dataclass(frozen=True)
class Context:
    """What a sequence is read against: tokens (B, L, width) and mask (B, L), True where a token counts."""

    tokens: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Memory:
    """Keys and values (B, heads, S, d) that every new query may see, and a mask (B, S) or None: all of them."""

    keys: Tensor
    values: Tensor
    mask: Tensor | None

    def with_last(self, keys: Tensor, values: Tensor) -> Memory:
        """This memory and the keys and values of more tokens."""
        mask = self.mask
        if mask is not None:
            mask = F.pad(mask, (0, keys.shape[2]), value=True)
        return Memory(torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2), mask)


class Attention(nn.Module):
    """Multi-head attention with normalised queries and keys; over a memory, over the sequence itself, or both."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.split = (heads, width // heads)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.query_norm = nn.LayerNorm(width // heads, eps=EPS)
        self.key_norm = nn.LayerNorm(width // heads, eps=EPS)

    def remember(self, u: Tensor, mask: Tensor | None = None) -> Memory:
        """The keys and values of u (B, S, width)."""
        k, v = (self._heads(part) for part in self.key_value(u).chunk(2, dim=-1))
        return Memory(self.key_norm(k), v, mask)

    def look(self, u: Tensor, memory: Memory, fused: bool) -> Tensor:
        """Every token of u (B, T, width) reads the whole memory."""
        mask = None if memory.mask is None else memory.mask[:, None, None]
        return self._attend(u, memory, mask, False, fused)

    def look_back(self, u: Tensor, memory: Memory | None, fused: bool) -> Tensor:
        """Token i of u (B, T, width) reads the memory and the tokens 0 … i."""
        own = self.remember(u)
        if memory is None:
            return self._attend(u, own, None, True, fused)
        T, S = u.shape[1], memory.keys.shape[2]
        mask = torch.ones(T, S + T, dtype=torch.bool, device=u.device).tril(S)
        if memory.mask is not None:
            mask = mask & F.pad(memory.mask, (0, T), value=True)[:, None, None]
        return self._attend(u, memory.with_last(own.keys, own.values), mask, False, fused)

    def _attend(self, u: Tensor, memory: Memory, mask: Tensor | None, causal: bool, fused: bool) -> Tensor:
        q = self.query_norm(self._heads(self.query(u)))
        read = attention(q, memory.keys, memory.values, mask, causal, fused)
        return self.out(read.transpose(1, 2).flatten(2))

    def _heads(self, u: Tensor) -> Tensor:
        return u.unflatten(-1, self.split).transpose(1, 2)  # (B, heads, T, d)


class AdaLN(nn.Module):
    """LN(h)·(1 + γ(e)) + β(e) for h (B, T, width), e (B, embed_dim).

    Source: Peebles & Xie, "Scalable Diffusion Models with Transformers", 2023.
    """

    def __init__(self, embed_dim: int, width: int):
        super().__init__()
        self.shape = (width,)
        self.scale_shift = zero_init(nn.Linear(embed_dim, 2 * width))

    def steer(self, e: Tensor) -> tuple[Tensor, Tensor]:
        """(1 + γ, β), (B, 1, width) each: once per sequence, however often the norm is applied."""
        scale, shift = self.scale_shift(e)[:, None].chunk(2, dim=-1)
        return 1 + scale, shift

    def forward(self, h: Tensor, steering: tuple[Tensor, Tensor]) -> Tensor:
        scale, shift = steering
        return torch.addcmul(shift, F.layer_norm(h, self.shape, eps=EPS), scale)


@dataclass(frozen=True)
class Steering:
    """What a layer makes of the condition, once per sequence: its norms' scales and shifts, its context's memory."""

    norms: list[tuple[Tensor, Tensor]]
    context: Memory | None


class Layer(nn.Module):
    """One layer over h (B, T, width), steered by e and, with a context, reading that as well.

    inject="concat": the context's keys and values stand before the sequence's own in one attention;
    "cross_attention": they have an attention of their own after it; "film": there is no context.
    """

    def __init__(self, width: int, heads: int, embed_dim: int, activation: Activation, inject: Inject):
        super().__init__()
        self.activation = activation
        self.attention = Attention(width, heads)
        self.cross = Attention(width, heads) if inject == "cross_attention" else None
        self.reads_context = {"film": None, "concat": self.attention, "cross_attention": self.cross}[inject]
        self.inner = nn.Linear(width, 4 * width)
        self.outer = nn.Linear(4 * width, width)
        self.norms = nn.ModuleList(AdaLN(embed_dim, width) for _ in range(2 if self.cross is None else 3))

    def steer(self, e: Tensor, context: Context | None) -> Steering:
        memory = None if context is None else self.reads_context.remember(context.tokens, context.mask)
        return Steering([norm.steer(e) for norm in self.norms], memory)

    def forward(self, h: Tensor, steering: Steering, fused: bool) -> Tensor:
        """All tokens at once."""
        prefix = None if self.cross is not None else steering.context
        return self._rest(h + self.attention.look_back(self._norm(0, h, steering), prefix, fused), steering, fused)

    def step(self, h: Tensor, steering: Steering, past: Memory | None, fused: bool) -> tuple[Tensor, Memory]:
        """The next token h (B, 1, width) against the tokens before it; returns them with it."""
        u = self._norm(0, h, steering)
        own = self.attention.remember(u)
        if past is None and self.cross is None:
            past = steering.context
        past = own if past is None else past.with_last(own.keys, own.values)
        return self._rest(h + self.attention.look(u, past, fused), steering, fused), past

    def _rest(self, h: Tensor, steering: Steering, fused: bool) -> Tensor:
        if self.cross is not None:
            h = h + self.cross.look(self._norm(1, h, steering), steering.context, fused)
        return h + self.outer(self.activation.plain(self.inner(self._norm(-1, h, steering))))

    def _norm(self, i: int, h: Tensor, steering: Steering) -> Tensor:
        return self.norms[i](h, steering.norms[i])


class PastTransformer(nn.Module):
    """o_i = g_i(u_0 … u_{i−1}; e, context), u (B, T, in_features) → o (B, T, out_features), zero at the start.

    length: T. width (divisible by heads), depth layers. checkpoint: each layer is computed again in the backward
    pass (flowdiff/models/nn/recompute.py).
    """

    def __init__(
        self,
        length: int,
        in_features: int,
        out_features: int,
        width: int,
        heads: int,
        depth: int,
        embed_dim: int,
        activation: Activation,
        inject: Inject,
        checkpoint: bool,
    ):
        super().__init__()
        self.checkpoint = checkpoint
        self.start = nn.Parameter(0.5 * torch.randn(width))
        self.positions = nn.Parameter(0.5 * torch.randn(length, width))
        self.inner = nn.Linear(in_features, width)
        self.layers = nn.ModuleList(Layer(width, heads, embed_dim, activation, inject) for _ in range(depth))
        self.norm = AdaLN(embed_dim, width)
        self.outer = zero_init(nn.Linear(width, out_features))

    def forward(self, u: Tensor, e: Tensor, context: Context | None, fused: bool) -> Tensor:
        start = self.start.expand(len(u), 1, -1)
        h = torch.cat([start, self.inner(u[:, :-1])], dim=1) + self.positions
        for layer in self.layers:
            h = call(layer, h, layer.steer(e, context), fused, checkpoint=self.checkpoint)
        return self._read_out(h, self.norm.steer(e), u.dtype)

    def reader(self, e: Tensor, context: Context | None, fused: bool) -> Reader:
        """Reads the sequence token by token."""
        return Reader(self, e, context, fused)

    def _read_out(self, h: Tensor, steering: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor:
        # In the precision of u also under autocast: log-scales come out here, and they add up to a log-determinant.
        with torch.autocast(h.device.type, enabled=False):
            return self.outer(self.norm(h, steering).to(dtype))


class Reader:
    """o_0, o_1, … of a PastTransformer, each after the token before it is known, at the cost of one token each.

    Every layer keeps the keys and values of the tokens that it has seen.
    """

    def __init__(self, net: PastTransformer, e: Tensor, context: Context | None, fused: bool):
        self.net = net
        self.fused = fused
        self.steerings = [layer.steer(e, context) for layer in net.layers]
        self.last = net.norm.steer(e)
        self.past: list[Memory | None] = [None] * len(net.layers)
        self.place = 0

    def first(self, batch: int) -> Tensor:
        """o_0 (B, out_features)."""
        return self._next(self.net.start.expand(batch, -1))

    def after(self, token: Tensor) -> Tensor:
        """o_{i+1} (B, out_features) once token u_i (B, in_features) is known."""
        return self._next(self.net.inner(token))

    def _next(self, h: Tensor) -> Tensor:
        h = (h + self.net.positions[self.place])[:, None]  # (B, 1, width)
        for i, layer in enumerate(self.net.layers):
            h, self.past[i] = layer.step(h, self.steerings[i], self.past[i], self.fused)
        self.place += 1
        return self.net._read_out(h, self.last, self.net.start.dtype)[:, 0]
