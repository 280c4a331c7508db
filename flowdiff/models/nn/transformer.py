"""A strictly causal transformer: the output at token i depends on the tokens u_0 … u_{i−1} and no others.

The input is the sequence shifted by one place after a learned start token, so that output 0 has a token to depend on.
Each layer, with AdaLN(h) = LN(h)·(1 + γ(e)) + β(e), γ and β linear and zero at the start:

    h ← h + Attention(AdaLN(h)),      h ← h + W₂ act(W₁ AdaLN(h))

The output is C^∞ in u if the activation is: LN divides by √(var + ε), so its derivatives are bounded by powers of 1/√ε.
Queries and keys are normalised too, so that attention logits stay within √d times learned gains.

Source: Dehghani et al., Scaling vision transformers to 22 billion parameters, 2023, for the normalised queries and
keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowdiff.models.activations import Activation
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.nn.control import Control, HintPart, squeezed, trainable_copy
from flowdiff.models.nn.embeddings import unit_linear
from flowdiff.models.nn.inject import Inject, zero_init
from flowdiff.models.nn.recompute import call
from flowdiff.models.nn.sdpa import attention, layer_norm

Item = TypeVar("Item", bound=nn.Module)
EPS = 1e-4  # ε in every normalisation; its input has a variance of order 1, and the gain is at most 100


@dataclass(frozen=True)
class Context:
    """Extra tokens (B, L, width) that every token of a sequence may attend to; mask (B, L), True where one counts."""

    tokens: Tensor
    mask: Tensor


@dataclass(frozen=True)
class KeyValues:
    """Keys and values (B, heads, S, d) of S tokens, and a mask (B, S), True where a token counts; None if all count."""

    keys: Tensor
    values: Tensor
    mask: Tensor | None

    def append(self, keys: Tensor, values: Tensor) -> KeyValues:
        """These keys and values followed by those of more tokens, which all count."""
        mask = self.mask
        if mask is not None:
            mask = F.pad(mask, (0, keys.shape[2]), value=True)
        return KeyValues(torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2), mask)


def typed(modules: nn.ModuleList, kind: type[Item]) -> list[Item]:
    """The modules as a typed list: nn.ModuleList does not keep the type of its elements."""
    return [module for module in modules if isinstance(module, kind)]


class Attention(nn.Module):
    """Multi-head attention with normalised queries and keys, over given keys and values or the sequence itself."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.split = (heads, width // heads)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.query_norm = nn.LayerNorm(width // heads, eps=EPS)
        self.key_norm = nn.LayerNorm(width // heads, eps=EPS)

    def key_values(self, u: Tensor, mask: Tensor | None = None) -> KeyValues:
        """The keys and values of u (B, S, width)."""
        k, v = (self._heads(part) for part in self.key_value(u).chunk(2, dim=-1))
        return KeyValues(_normalised(self.key_norm, k), v, mask)

    def attend(self, u: Tensor, given: KeyValues, fused: bool) -> Tensor:
        """Every token of u (B, T, width) attends to all given tokens."""
        mask = None if given.mask is None else given.mask[:, None, None]
        return self._attend(u, given, mask, False, fused)

    def attend_causally(self, u: Tensor, prefix: KeyValues | None, fused: bool) -> Tensor:
        """Token i of u (B, T, width) attends to the prefix and to the tokens 0 … i."""
        own = self.key_values(u)
        if prefix is None:
            return self._attend(u, own, None, True, fused)
        T, S = u.shape[1], prefix.keys.shape[2]
        mask = torch.ones(T, S + T, dtype=torch.bool, device=u.device).tril(S)
        if prefix.mask is not None:
            mask = mask & F.pad(prefix.mask, (0, T), value=True)[:, None, None]
        return self._attend(u, prefix.append(own.keys, own.values), mask, False, fused)

    def _attend(self, u: Tensor, given: KeyValues, mask: Tensor | None, causal: bool, fused: bool) -> Tensor:
        q = _normalised(self.query_norm, self._heads(self.query(u)))
        out = attention(q, given.keys, given.values, mask, causal, fused)
        return self.out(out.transpose(1, 2).flatten(2))

    def _heads(self, u: Tensor) -> Tensor:
        return u.unflatten(-1, self.split).transpose(1, 2)  # (B, heads, T, d)


def _normalised(norm: nn.LayerNorm, u: Tensor) -> Tensor:
    return layer_norm(u, norm.eps, norm.weight, norm.bias)


class AdaLN(nn.Module):
    """Layer normalisation of h (B, T, width) with scale and shift from an embedding e (B, embed_dim).

    h ← LN(h)·(1 + γ(e)) + β(e),  γ and β linear and 0 at the start

    Source: Peebles, Xie, Scalable diffusion models with transformers, 2023.
    """

    def __init__(self, embed_dim: int, width: int):
        super().__init__()
        self.scale_shift = zero_init(nn.Linear(embed_dim, 2 * width))

    def steer(self, e: Tensor) -> tuple[Tensor, Tensor]:
        """(1 + γ, β), (B, 1, width) each: computed once per sequence, used at every token."""
        scale, shift = self.scale_shift(e)[:, None].chunk(2, dim=-1)
        return 1 + scale, shift

    def forward(self, h: Tensor, steering: tuple[Tensor, Tensor]) -> Tensor:
        scale, shift = steering
        return torch.addcmul(shift, layer_norm(h, EPS), scale)


@dataclass(frozen=True)
class Steering:
    """What a layer computes from the condition, once per sequence."""

    norms: list[tuple[Tensor, Tensor]]  # scale and shift of each norm
    context: KeyValues | None  # of the context's tokens


class Layer(nn.Module):
    """One layer over h (B, T, width), which depends on e and, if there is one, on a context.

    h ← h + Attention(AdaLN(h)),  h ← h + W₂ act(W₁ AdaLN(h))

    Args:
        width: width of the tokens.
        heads: number of heads, a divisor of width.
        embed_dim: width of e.
        activation: nonlinearity act.
        inject: film: no context; concat: the context precedes the sequence in one attention; cross_attention: the
            context has an attention of its own, after the attention over the sequence.
    """

    def __init__(self, width: int, heads: int, embed_dim: int, activation: Activation, inject: Inject):
        super().__init__()
        self.activation = activation
        self.attention = Attention(width, heads)
        self.cross = Attention(width, heads) if inject == "cross_attention" else None
        self.reads_context: Attention | None = None if inject == "film" else self.cross or self.attention
        self.inner = nn.Linear(width, 4 * width)
        self.outer = nn.Linear(4 * width, width)
        self.norms = nn.ModuleList(AdaLN(embed_dim, width) for _ in range(2 if self.cross is None else 3))

    def steer(self, e: Tensor, context: Context | None) -> Steering:
        given = None
        if context is not None and self.reads_context is not None:
            given = self.reads_context.key_values(context.tokens, context.mask)
        return Steering([norm.steer(e) for norm in typed(self.norms, AdaLN)], given)

    def forward(self, h: Tensor, steering: Steering, fused: bool) -> Tensor:
        """All tokens at once."""
        prefix = None if self.cross is not None else steering.context
        return self._rest(
            h + self.attention.attend_causally(self._norm(0, h, steering), prefix, fused), steering, fused
        )

    def step(self, h: Tensor, steering: Steering, past: KeyValues | None, fused: bool) -> tuple[Tensor, KeyValues]:
        """The output for the next token h (B, 1, width), and the keys and values of all tokens so far."""
        u = self._norm(0, h, steering)
        own = self.attention.key_values(u)
        if past is None and self.cross is None:
            past = steering.context
        past = own if past is None else past.append(own.keys, own.values)
        return self._rest(h + self.attention.attend(u, past, fused), steering, fused), past

    def _rest(self, h: Tensor, steering: Steering, fused: bool) -> Tensor:
        if self.cross is not None and steering.context is not None:
            h = h + self.cross.attend(self._norm(1, h, steering), steering.context, fused)
        return h + self.outer(self.activation.plain(self.inner(self._norm(-1, h, steering))))

    def _norm(self, i: int, h: Tensor, steering: Steering) -> Tensor:
        return self.norms[i](h, steering.norms[i])


class PastTransformer(nn.Module):
    """Strictly causal transformer, u (B, T, in_features) → o (B, T, out_features); 0 at the start.

    o_i = g_i(u_0 … u_{i−1}; e, context)

    Args:
        length: number of tokens T.
        in_features: width of a token of u.
        out_features: width of a token of o.
        width: width of the layers.
        heads: number of heads, a divisor of width.
        depth: number of layers.
        embed_dim: width of e (B, embed_dim).
        activation: nonlinearity of the layers.
        inject: how the context enters the layers, film | concat | cross_attention; with film there is no context.
        checkpoint: recompute each layer in the backward pass (flowdiff/models/nn/recompute.py).
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
        self.width = width
        self.start = nn.Parameter(0.5 * torch.randn(width))
        self.positions = nn.Parameter(0.5 * torch.randn(length, width))
        self.inner = nn.Linear(in_features, width)
        self.layers = nn.ModuleList(Layer(width, heads, embed_dim, activation, inject) for _ in range(depth))
        self.norm = AdaLN(embed_dim, width)
        self.outer = zero_init(nn.Linear(width, out_features))

    def forward(
        self, u: Tensor, e: Tensor, context: Context | None, fused: bool, entering: Tensor | None = None
    ) -> Tensor:
        """o; `entering` (B, T, width) is added to the input of each token."""
        start = self.start.expand(len(u), 1, -1)
        h = torch.cat([start, self.inner(u[:, :-1])], dim=1) + self.positions
        if entering is not None:
            h = h + entering
        for layer in typed(self.layers, Layer):
            h = call(layer, h, layer.steer(e, context), fused, checkpoint=self.checkpoint)
        return self._read_out(h, self.norm.steer(e), u.dtype)

    def reader(self, e: Tensor, context: Context | None, fused: bool, entering: Tensor | None = None) -> Reader:
        """Computes the outputs token by token, to invert an autoregressive map."""
        return Reader(self, e, context, fused, entering)

    def _read_out(self, h: Tensor, steering: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor:
        # In the precision of u even under autocast: the outputs contain log-scales, which add up to a log-determinant.
        with torch.autocast(h.device.type, enabled=False):
            return self.outer(self.norm(h, steering).to(dtype))


class Reader:
    """The outputs o_0, o_1, … of a PastTransformer one by one, each at the cost of one token.

    Every layer stores the keys and values of the tokens so far. Call `first`, then `after` with u_0, u_1, ….
    """

    def __init__(
        self, net: PastTransformer, e: Tensor, context: Context | None, fused: bool, entering: Tensor | None = None
    ):
        self.net = net
        self.entering = entering
        self.fused = fused
        self.layers = typed(net.layers, Layer)
        self.steerings = [layer.steer(e, context) for layer in self.layers]
        self.last = net.norm.steer(e)
        self.past: list[KeyValues | None] = [None] * len(self.layers)
        self.place = 0

    def first(self, batch: int) -> Tensor:
        """o_0 (B, out_features)."""
        return self._next(self.net.start.expand(batch, -1))

    def after(self, token: Tensor) -> Tensor:
        """o_{i+1} (B, out_features) for token u_i (B, in_features)."""
        return self._next(self.net.inner(token))

    def _next(self, h: Tensor) -> Tensor:
        h = h + self.net.positions[self.place]
        if self.entering is not None:
            h = h + self.entering[:, self.place]
        h = h[:, None]  # (B, 1, width)
        for i, layer in enumerate(self.layers):
            h, self.past[i] = layer.step(h, self.steerings[i], self.past[i], self.fused)
        self.place += 1
        return self.net._read_out(h, self.last, self.net.start.dtype)[:, 0]


class PastControl(Control):
    """A trainable copy of a PastTransformer that reads all of a hint at every token; 0 at the start.

    h_i ← h_i + (K ∗ h)_i,  e ← e + silu(G h),  K a 3×3 convolution over the patches of the hint

    The mask is causal in x alone. The input of token i has what the hint shows there and around it, in the order of the
    tokens, and e has all of it.

    Args:
        net: the transformer.
        part: the hint.
        embed_dim: width of e.
        grid: rows and columns of the tokens, row by row; None for tokens without a place, whose hint is in e alone.
        reverse: whether the tokens are taken from the last to the first.
    """

    def __init__(
        self, net: PastTransformer, part: HintPart, embed_dim: int, grid: tuple[int, int] | None, reverse: bool = False
    ):
        super().__init__(part)
        self.net = trainable_copy(net)
        zero_init(self.net.outer)
        self.grid = grid
        self.reverse = reverse
        self.whole = unit_linear(part.size, embed_dim, bias=False)
        self.around: nn.Conv2d | None = None
        if grid is not None:
            channels = part.size // (grid[0] * grid[1])
            self.around = nn.Conv2d(channels, net.width, kernel_size=3, padding=1, bias=False)
            nn.init.normal_(self.around.weight, std=(9 * channels) ** -0.5)
        self.to(net.start)

    def forward(self, u: Tensor, cond: Conditioning, context: Context | None, fused: bool) -> Tensor:
        e, entering = self._read(cond)
        return self.net(u, e, context, fused, entering)

    def reader(self, cond: Conditioning, context: Context | None, fused: bool) -> Reader:
        """Its outputs token by token."""
        e, entering = self._read(cond)
        return self.net.reader(e, context, fused, entering)

    def _read(self, cond: Conditioning) -> tuple[Tensor, Tensor | None]:
        """e with the hint, and what is added to the input of each token."""
        assert cond.vector is not None
        hint = self.hint(cond)
        e = cond.vector + F.silu(self.whole(hint.flatten(1)))
        if self.around is None or self.grid is None:
            return e, None
        tokens = self.around(squeezed(hint, self.grid)).flatten(2).mT  # (B, T, width)
        return e, tokens.flip(1) if self.reverse else tokens


class ControlledReader:
    """The outputs of a PastTransformer and of its controls, added up, token by token.

    Args:
        net: the transformer.
        controls: the controls that add something.
        cond: the condition.
        context: extra tokens.
        fused: as of `PastTransformer.forward`.
    """

    def __init__(
        self, net: PastTransformer, controls: list[Control], cond: Conditioning, context: Context | None, fused: bool
    ):
        assert cond.vector is not None
        self.reader = net.reader(cond.vector, context, fused)
        self.others = [(c.strength, c.reader(cond, context, fused)) for c in controls if isinstance(c, PastControl)]

    def first(self, batch: int) -> Tensor:
        """o_0 (B, out_features)."""
        return self._sum([reader.first(batch) for reader in self._readers()])

    def after(self, token: Tensor) -> Tensor:
        """o_{i+1} (B, out_features) for token u_i (B, in_features)."""
        return self._sum([reader.after(token) for reader in self._readers()])

    def _readers(self) -> list[Reader]:
        return [self.reader, *(reader for _, reader in self.others)]

    def _sum(self, outputs: list[Tensor]) -> Tensor:
        total, *residuals = outputs
        for (strength, _), residual in zip(self.others, residuals, strict=True):
            total = total + strength * residual
        return total
