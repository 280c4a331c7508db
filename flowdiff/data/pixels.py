"""What the numbers of a data set mean, and how they are mapped to model space [-1, 1] and back.

Pixels take integer levels k in {0, …, L-1} (L = `levels`). Level k owns the bin [2k/L - 1, 2(k+1)/L - 1), and

    x = 2 (k + u) / L - 1,    u ~ U[0, 1) when dequantised, u = 1/2 (the bin's midpoint) otherwise.

With uniform dequantisation a density p of D-dimensional x bounds the probability of the levels from below,
log P(k) ≥ E_u[log p(x)] + D log(2/L) (Theis, van den Oord, Bethge, "A note on the evaluation of generative
models", 2016).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from flowdiff.errors import ConfigurationError

# u stays below this, so that k + u never rounds up to k + 1 in float32 for L ≤ 256.
U_MAX = 1 - 2**-16


class Values(Protocol):
    """What the numbers of raw samples mean: Pixels, Vectors, or the values of latents (flowdiff/data/latents.py).

    levels: number of values a pixel can take; None for continuous data.
    flip: whether training mirrors images at random.
    """

    @property
    def levels(self) -> int | None: ...

    @property
    def flip(self) -> bool: ...

    def to_model(self, x: Tensor, generator: torch.Generator | None = None, train: bool = False) -> Tensor:
        """Raw samples x (B, …) to model space, float32; random numbers come from `generator`."""

    def quantize(self, x: Tensor) -> Tensor:
        """Model-space samples snapped to the midpoints of the levels; x itself for continuous data."""

    def to_uint8(self, x: Tensor) -> Tensor:
        """Model-space images as uint8 pictures of the same shape; ConfigurationError if they are not images."""


def centred(values: Values, x_raw: Tensor) -> Tensor:
    """Raw samples in model space without dequantisation noise: x = 2 (k + ½) / L − 1; vectors as they are."""
    unused = torch.Generator(x_raw.device)  # `quantize` removes the noise that `to_model` may add
    return values.quantize(values.to_model(x_raw, generator=unused))


def _uniform(shape: tuple[int, ...], x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform numbers in [0, 1) on x's device, drawn on the generator's device."""
    source = x.device if generator is None else generator.device
    return torch.rand(shape, generator=generator, device=source).to(x.device)


@dataclass(frozen=True)
class Pixels:
    """Images (B, C, H, W) of `levels` grey values per channel.

    Args:
        levels: number L of levels, in 2…256.
        dequantize: draw u uniformly instead of taking the midpoint.
        flip: mirror each training image left to right with probability 1/2.
    """

    levels: int
    dequantize: bool
    flip: bool

    def to_model(self, x: Tensor, generator: torch.Generator | None = None, train: bool = False) -> Tensor:
        """Levels k, uint8 (B, C, H, W), to x in [-1, 1], float32; images are mirrored only when `train`."""
        u = _uniform(x.shape, x, generator) * U_MAX if self.dequantize else 0.5
        x = x.float().add_(u).mul_(2 / self.levels).sub_(1)  # (B, C, H, W)
        if self.flip and train:
            heads = _uniform((len(x), 1, 1, 1), x, generator) < 0.5
            x = torch.where(heads, x.flip(-1), x)
        return x

    def level(self, x: Tensor) -> Tensor:
        """The level k whose bin holds x, as float; x outside [-1, 1] takes the nearest level."""
        return ((x + 1) * (self.levels / 2)).floor().clamp(0, self.levels - 1)

    def quantize(self, x: Tensor) -> Tensor:
        """x snapped to the midpoint of its bin, 2(k + 1/2)/L - 1, dtype of x."""
        return (self.level(x) + 0.5) * (2 / self.levels) - 1

    def to_uint8(self, x: Tensor) -> Tensor:
        """x as a picture, uint8, same shape: k·255/(L-1), rounded."""
        return (self.level(x) * (255 / (self.levels - 1))).round().to(torch.uint8)


@dataclass(frozen=True)
class Vectors:
    """Continuous vectors (B, D): model space is data space."""

    levels: ClassVar[None] = None
    flip: ClassVar[bool] = False

    def to_model(self, x: Tensor, generator: torch.Generator | None = None, train: bool = False) -> Tensor:
        """x as float32; nothing is drawn."""
        return x.float()

    def quantize(self, x: Tensor) -> Tensor:
        """x itself: continuous data have no levels."""
        return x

    def to_uint8(self, x: Tensor) -> Tensor:
        """Raises ConfigurationError: vectors have no pixels."""
        raise ConfigurationError("these data are vectors, which have no pixels to save as uint8: draw them as points.")
