"""The contract of a hint, and what several hints share."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from flowdiff.errors import ConfigurationError
from flowdiff.registry import name_of
from flowdiff.shapes import times

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue, as of JPEG's Y


class Hint(ABC):
    """A function of a clean image that gives a picture: what a sample is to look like.

    h = H(x0),  of the sides of x0, in [-1, 1]

    Args:
        shape: shape of an image x0, (C, H, W).

    Raises:
        ConfigurationError: the samples are no images.
    """

    agreement: str = "hint_error"  # what `obeyed` measures
    channels: int = 1  # of the picture, 1 or 3 so that it can be shown

    def __init__(self, shape: tuple[int, ...]):
        if len(shape) != 3:
            raise ConfigurationError(
                f"hint={name_of('hint', self)} is a picture made of an image, and the samples have shape "
                f"{times(shape)}: take a dataset of images, or hint=none."
            )
        self.sides = tuple(shape[1:])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the picture."""
        return self.channels, self.sides[0], self.sides[1]

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """h (B, *shape) of clean images x (B, C, H, W) in [-1, 1]."""

    def obeyed(self, asked: Tensor, found: Tensor) -> Tensor:
        """How well samples obey, (B,): of the hints asked for and those of the samples; the RMS error by default."""
        return (asked - found).square().flatten(1).mean(1).sqrt()


def grey(x: Tensor) -> Tensor:
    """Images (B, C, H, W) as grey ones, (B, 1, H, W); of three channels the luma."""
    weights = x.new_tensor(LUMA) if x.shape[1] == 3 else x.new_full((x.shape[1],), 1 / x.shape[1])
    return (weights.view(1, -1, 1, 1) * x).sum(1, keepdim=True)


def share_that_agrees(asked: Tensor, found: Tensor) -> Tensor:
    """The share of pixels whose values are the same in all channels, (B,)."""
    return ((asked - found).abs() < 0.5).all(1).flatten(1).double().mean(1)
