"""The residual net of images: its linear maps are 3×3 convolutions, or 1×1 convolutions that only mix channels."""

from __future__ import annotations

from functools import partial
from typing import final

from torch import nn

from flowdiff.models.nn.attention import SelfAttention
from flowdiff.models.nn.residual import NetSettings, ResidualNet


@final
class ResidualConv(ResidualNet):
    """Residual net (B, in_features, H, W) → (B, out_features, H, W) that depends on the condition; 0 at the start.

    Without attention an output pixel depends on input pixels up to 2 + depth away, with attention on all of them.

    Args:
        in_features: channels of the input.
        out_features: channels of the output.
        settings: width, depth, activation and condition of the net.
        attention_heads: heads of the self-attention after each block, a divisor of the width; 0 without attention.
        positions: number of pixels H·W; needed with attention only.
    """

    def __init__(
        self, in_features: int, out_features: int, settings: NetSettings, attention_heads: int = 0, positions: int = 0
    ):
        super().__init__(
            in_features,
            out_features,
            settings,
            wide=partial(nn.Conv2d, kernel_size=3, padding=1),
            narrow=partial(nn.Conv2d, kernel_size=1),
            mixer=partial(SelfAttention, settings.width, positions, attention_heads) if attention_heads else None,
        )
