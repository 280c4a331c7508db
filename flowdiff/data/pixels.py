"""What the numbers of a data set mean, and the way from them to model space [-1, 1] and back.

Pixels take integer levels k in {0, …, L-1} (L = `levels`). Level k owns the bin [2k/L - 1, 2(k+1)/L - 1), and

    x = 2 (k + u) / L - 1,    u ~ U[0, 1) when dequantised, u = 1/2 (the bin's midpoint) otherwise.

With uniform dequantisation a density p of D-dimensional x bounds the probability of the levels from below,
log P(k) ≥ E_u[log p(x)] + D log(2/L) (Theis, van den Oord, Bethge, "A note on the evaluation of generative
models", 2016).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowdiff.errors import ConfigurationError

# u stays below this, so that k + u never rounds up to k + 1 in float32 for L ≤ 256.
U_MAX = 1 - 2**-16


def _uniform(shape: tuple[int, ...], x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Numbers in [0, 1) on x's device, drawn where the generator lives."""
    source = x.device if generator is None else generator.device
    return torch.rand(shape, generator=generator, device=source).to(x.device)


@dataclass(frozen=True)
class Pixels:
    """Images (B, C, H, W) of `levels` grey values per channel.

    levels: L in 2…256.  dequantize: draw u uniformly instead of taking the midpoint.  flip: mirror each
    training image left to right with probability 1/2.
    """

    levels: int
    dequantize: bool
    flip: bool

    def to_model(self, x: Tensor, generator: torch.Generator | None = None, train: bool = False) -> Tensor:
        """Levels k, uint8 (B, C, H, W), to x in [-1, 1], float32; flips happen only when `train`."""
        u = _uniform(x.shape, x, generator) * U_MAX if self.dequantize else 0.5
        x = x.float().add_(u).mul_(2 / self.levels).sub_(1)  # (B, C, H, W)
        if self.flip and train:
            heads = _uniform((len(x), 1, 1, 1), x, generator) < 0.5
            x = torch.where(heads, x.flip(-1), x)
        return x

    def level(self, x: Tensor) -> Tensor:
        """The level k whose bin holds x, as float; what lies outside [-1, 1] takes the nearest level."""
        return ((x + 1) * (self.levels / 2)).floor().clamp(0, self.levels - 1)

    def quantize(self, x: Tensor) -> Tensor:
        """x snapped to the midpoint of its bin, 2(k + 1/2)/L - 1, dtype of x."""
        return (self.level(x) + 0.5) * (2 / self.levels) - 1

    def to_uint8(self, x: Tensor) -> Tensor:
        """x as an ordinary picture, uint8, same shape: k·255/(L-1), rounded."""
        return (self.level(x) * (255 / (self.levels - 1))).round().to(torch.uint8)


@dataclass(frozen=True)
class Vectors:
    """Continuous vectors (B, D): model space is data space."""

    levels: None = None

    def to_model(self, x: Tensor, generator: torch.Generator | None = None, train: bool = False) -> Tensor:
        """x as float32; nothing is drawn."""
        return x.float()

    def quantize(self, x: Tensor) -> Tensor:
        """x itself: continuous data have no levels."""
        return x

    def to_uint8(self, x: Tensor) -> Tensor:
        """Refused with ConfigurationError: vectors have no pixels."""
        raise ConfigurationError("these data are vectors, which have no pixels to save as uint8: draw them as points.")


