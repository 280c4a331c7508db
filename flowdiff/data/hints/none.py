"""No hint."""

from __future__ import annotations

from torch import Tensor

from flowdiff.data.hints.base import Hint
from flowdiff.registry import register


@register("hint", "none")
class NoHint(Hint):
    """The model reads no hint; all data sets go with it.

    Args:
        shape: shape of a sample.
    """

    channels = 0

    def __init__(self, shape: tuple[int, ...]):
        self.sides = tuple(shape[1:])

    def __call__(self, x: Tensor) -> Tensor:
        return x[:, :0]
