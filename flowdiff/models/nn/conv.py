"""The residual net of images: its linear maps are 3×3 convolutions, or 1×1 convolutions that only mix channels."""

from __future__ import annotations

import math
from functools import partial
from typing import final

from torch import Tensor, nn

from flowdiff.models.nn.attention import SelfAttention
from flowdiff.models.nn.control import HintPart, squeezed
from flowdiff.models.nn.residual import NetSettings, ResidualNet


@final
class ResidualConv(ResidualNet):
    """Residual net (B, in_features, H, W) → (B, out_features, H, W) that depends on the condition; 0 at the start.

    Without attention an output pixel depends on input pixels up to 2 + depth away, with attention on all of them.

    Args:
        in_features: channels of the input.
        out_features: channels of the output.
        settings: width, depth, activation and condition of the net.
        grid: (H, W); needed with attention, and to read a hint.
        attention_heads: heads of the self-attention after each block, a divisor of the width; 0 without attention.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        settings: NetSettings,
        grid: tuple[int, int] = (1, 1),
        attention_heads: int = 0,
    ):
        mixer = partial(SelfAttention, settings.width, math.prod(grid), attention_heads) if attention_heads else None
        super().__init__(
            in_features,
            out_features,
            settings,
            wide=partial(nn.Conv2d, kernel_size=3, padding=1),
            narrow=partial(nn.Conv2d, kernel_size=1),
            mixer=mixer,
        )
        self.grid = grid

    def hint_entry(self, part: HintPart) -> nn.Module:
        return HintEntry(part, self.grid, self.width)


class HintEntry(nn.Module):
    """A hint (B, C, H, W) squeezed to the pixels of a grid and convolved, (B, width, h, w).

    Args:
        part: the hint, whose sides the grid divides.
        grid: (h, w).
        width: channels of the result.
    """

    def __init__(self, part: HintPart, grid: tuple[int, int], width: int):
        super().__init__()
        self.grid = grid
        channels = part.size // math.prod(grid)
        self.convolution = nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False)
        nn.init.normal_(self.convolution.weight, std=(9 * channels) ** -0.5)

    def forward(self, hint: Tensor) -> Tensor:
        return self.convolution(squeezed(hint, self.grid))
