"""A residual net that knows the condition; whether its linear maps are matrices or convolutions is given.

    h₀ = W_in x,   h ← h + W₂ act(FiLM(W₁ act(h), e)),   y = W_out act(h)

With the other ways to inject the condition (flowdiff/models/nn/inject.py) it is h₀ = W_in [x, e], or an attention over the
condition in front of every block, in place of FiLM. No normalisation: the net is as smooth in x as its activation.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from flowdiff.models.activations import Activation
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.nn.inject import CrossAttention, FiLM, Inject, zero_init
from flowdiff.shapes import append_dims

LinearMap = Callable[[int, int], nn.Module]  # (in_features, out_features) → a layer with weight and bias


@dataclass(frozen=True)
class NetSettings:
    """What the nets of one model share: depth residual blocks of `width`, and how they hear of the condition.

    cond.vector is (B, embed_dim); token_dim is the width of cond.tokens, 0 if there are none, and read by
    inject=cross_attention alone.
    """

    width: int
    depth: int
    embed_dim: int
    activation: Activation
    inject: Inject
    token_dim: int = 0


class ResidualNet(nn.Module, ABC):
    """x (B, in_features, …), cond → (B, out_features, …), zero at the start.

    The residual blocks stand between a linear map in and a zero-initialised one out. `wide` makes the maps in, out and
    W₁, `narrow` W₂, `mixer` what follows each block, if anything does.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        settings: NetSettings,
        wide: LinearMap,
        narrow: LinearMap,
        mixer: Callable[[], nn.Module] | None = None,
    ):
        super().__init__()
        width = settings.width
        self.activation = settings.activation
        self.inner = wide(in_features, width)
        self.entry = nn.Linear(settings.embed_dim, width, bias=False) if settings.inject == "concat" else None
        self.blocks = nn.ModuleList(ResidualBlock(settings, wide, narrow, mixer) for _ in range(settings.depth))
        self.outer = zero_init(wide(width, out_features))

    def forward(self, x: Tensor, cond: Conditioning) -> Tensor:
        h = self.inner(x)
        if self.entry is not None:
            h = h + append_dims(self.entry(cond.vector), h.ndim)  # W_in [x, e], e the same at every pixel
        for block in self.blocks:
            h = block(h, cond)
        return self.outer(self.activation.plain(h))


class ResidualBlock(nn.Module):
    """h + W₂ act(FiLM(W₁ act(h), e)): h (B, width, …) → like h."""

    def __init__(
        self, settings: NetSettings, wide: LinearMap, narrow: LinearMap, mixer: Callable[[], nn.Module] | None
    ):
        super().__init__()
        width, embed_dim, inject = settings.width, settings.embed_dim, settings.inject
        self.activation = settings.activation
        self.attention = CrossAttention(width, embed_dim, settings.token_dim) if inject == "cross_attention" else None
        self.inner = wide(width, width)
        self.film = FiLM(embed_dim, width) if inject == "film" else None
        self.outer = narrow(width, width)
        self.mixer = None if mixer is None else mixer()

    def forward(self, h: Tensor, cond: Conditioning) -> Tensor:
        act = self.activation.plain
        if self.attention is not None:
            h = self.attention(h, cond)
        u = self.inner(act(h))
        if self.film is not None:
            u = self.film(u, cond.vector)
        h = h + self.outer(act(u))
        return h if self.mixer is None else self.mixer(h)
