"""Residual MLP whose every block is steered by the condition's embedding e (FiLM).

    h₀ = W_in x,   h ← h + W₂ act(FiLM(W₁ act(h), e)),   y = W_out act(h),   FiLM(u, e) = u·(1 + γ(e)) + β(e)

No normalisation: the net is as smooth in x as its activation, and its derivatives cost only matrix products.
"""

from __future__ import annotations

from torch import Tensor, nn

from flowdiff.activations import Activation


class FiLM(nn.Module):
    """Feature-wise scale and shift by an embedding, u·(1 + γ(e)) + β(e), γ and β linear and 0 at the start.

    u (B, width), e (B, embed_dim) → (B, width).
    Source: Perez et al., "FiLM: Visual Reasoning with a General Conditioning Layer", 2018.
    """

    def __init__(self, embed_dim: int, width: int):
        super().__init__()
        self.scale_shift = zero_init(nn.Linear(embed_dim, 2 * width))

    def forward(self, u: Tensor, e: Tensor) -> Tensor:
        scale, shift = self.scale_shift(e).chunk(2, dim=1)  # (B, width) each
        return u * (1 + scale) + shift


class ResidualBlock(nn.Module):
    """h + W₂ act(FiLM(W₁ act(h), e)): h (B, width), e (B, embed_dim) → (B, width)."""

    def __init__(self, width: int, embed_dim: int, activation: Activation):
        super().__init__()
        self.activation = activation
        self.inner = nn.Linear(width, width)
        self.film = FiLM(embed_dim, width)
        self.outer = nn.Linear(width, width)

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        act = self.activation.plain
        return h + self.outer(act(self.film(self.inner(act(h)), e)))


class ResidualMLP(nn.Module):
    """x (B, in_features), embedding e (B, embed_dim) → (B, out_features), zero at the start, any x and e.

    depth residual blocks of `width` between a linear map in and a zero-initialised linear map out.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        width: int,
        depth: int,
        embed_dim: int,
        activation: Activation,
    ):
        super().__init__()
        self.activation = activation
        self.inner = nn.Linear(in_features, width)
        self.blocks = nn.ModuleList(ResidualBlock(width, embed_dim, activation) for _ in range(depth))
        self.outer = zero_init(nn.Linear(width, out_features))

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = self.inner(x)
        for block in self.blocks:
            h = block(h, e)
        return self.outer(self.activation.plain(h))


def zero_init(layer: nn.Module) -> nn.Module:
    """Set weight and bias of a linear or convolutional layer to 0: what it feeds starts switched off."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
