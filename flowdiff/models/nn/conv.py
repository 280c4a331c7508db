"""The residual net of images: its linear maps are convolutions, 3×3 where it looks around, 1×1 where it mixes."""

from __future__ import annotations

from functools import partial
from typing import final

from torch import nn

from flowdiff.models.nn.attention import SelfAttention
from flowdiff.models.nn.residual import NetSettings, ResidualNet


@final
class ResidualConv(ResidualNet):
    """x (B, in_features, H, W), cond → (B, out_features, H, W), zero at the start, any x.

    Each output pixel sees 2 + depth pixels to every side; with attention_heads > 0 (a divisor of the width) every block
    is followed by self-attention over the `positions` = H·W pixels, and it sees all of them.
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
