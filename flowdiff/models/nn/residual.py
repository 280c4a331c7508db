"""A residual net that depends on the condition; its linear maps are matrices or convolutions.

    h₀ = W_in x,   h ← h + W₂ act(FiLM(W₁ act(h), e)),   y = W_out act(h)

This is inject=film. The other ways to inject the condition (flowdiff/models/nn/inject.py) replace FiLM by an attention
over the condition before every block, or by h₀ = W_in [x, e]. The net has no normalisation layers, so it is as smooth
in x as its activation.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from flowdiff.models.activations import Activation
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.nn.control import Control, Controllable, HintPart, trainable_copy, with_residuals
from flowdiff.models.nn.inject import CrossAttention, FiLM, Inject, zero_init
from flowdiff.shapes import append_dims

LinearMap = Callable[[int, int], nn.Module]  # (in_features, out_features) → a layer with weight and bias


@dataclass(frozen=True)
class NetSettings:
    """Settings shared by the nets of one model.

    Args:
        width: width of the residual blocks.
        depth: number of residual blocks.
        embed_dim: width of cond.vector (B, embed_dim).
        activation: nonlinearity of the blocks.
        inject: how the condition enters the net, film | concat | cross_attention.
        token_dim: width of cond.tokens (B, L, token_dim), 0 without tokens; only cross_attention reads them.
    """

    width: int
    depth: int
    embed_dim: int
    activation: Activation
    inject: Inject
    token_dim: int = 0


class ResidualNet(nn.Module, Controllable):
    """Residual net (B, in_features, …) → (B, out_features, …) that depends on the condition; 0 at the start.

    h₀ = W_in x,  h ← block(h; cond),  y = W_out act(h),  W_out = 0 at the start

    Its controls are copies of it, whose W_out is 0, and which add a map of the hint to h₀.

    Args:
        in_features: features of the input.
        out_features: features of the output.
        settings: width, depth, activation and condition of the net.
        wide: makes W_in, W_out and the W₁ of each block.
        narrow: makes the W₂ of each block.
        mixer: makes a module (B, width, …) → like it that is applied after each block; None for none.
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
        self.width = width = settings.width
        self.activation = settings.activation
        self.inner = wide(in_features, width)
        self.entry = nn.Linear(settings.embed_dim, width, bias=False) if settings.inject == "concat" else None
        self.blocks = nn.ModuleList(ResidualBlock(settings, wide, narrow, mixer) for _ in range(settings.depth))
        self.outer = zero_init(wide(width, out_features))
        self.controls = nn.ModuleList()

    @abstractmethod
    def hint_entry(self, part: HintPart) -> nn.Module:
        """A map of a hint (B, C, H, W) to what is added to h₀."""

    def make_control(self, part: HintPart) -> Control:
        return ResidualControl(self, part)

    def forward(self, x: Tensor, cond: Conditioning) -> Tensor:
        return with_residuals(self.output(x, cond), self.active(cond), x, cond)

    def output(self, x: Tensor, cond: Conditioning, entering: Tensor | None = None) -> Tensor:
        """y without residuals; `entering` is added to h₀."""
        h = self.inner(x)
        if entering is not None:
            h = h + entering
        if self.entry is not None:
            h = h + append_dims(self.entry(cond.vector), h.ndim)  # W_in [x, e], e the same at every pixel
        for block in self.blocks:
            h = block(h, cond)
        return self.outer(self.activation.plain(h))


class ResidualControl(Control):
    """A trainable copy of a residual net that reads a hint; 0 at the start.

    Args:
        net: the net.
        part: the hint.
    """

    def __init__(self, net: ResidualNet, part: HintPart):
        super().__init__(part)
        self.net = trainable_copy(net)
        zero_init(self.net.outer)
        self.entry = net.hint_entry(part).to(next(net.parameters()))

    def forward(self, x: Tensor, cond: Conditioning) -> Tensor:
        return self.net.output(x, cond, self.entry(self.hint(cond)))


class ResidualBlock(nn.Module):
    """One residual block of h (B, width, …).

    h ← h + W₂ act(FiLM(W₁ act(h), e))
    """

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
