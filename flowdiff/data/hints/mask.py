"""The silhouette of what is bright."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from flowdiff.data.hints.base import Hint, grey, share_that_agrees
from flowdiff.registry import register


@register("hint", "mask")
class Mask(Hint):
    """Where the image is brighter than a threshold: 1 there, −1 elsewhere.

    Agreement is the share of pixels at which two masks are the same.

    Args:
        shape: shape of an image, (C, H, W).
        threshold: of the grey image, in [-1, 1].
    """

    agreement = "mask_agreement"

    def __init__(self, shape: tuple[int, ...], *, threshold: Annotated[float, Field(ge=-1, le=1)]):
        super().__init__(shape)
        self.threshold = threshold

    def __call__(self, x: Tensor) -> Tensor:
        return 2 * (grey(x) > self.threshold).to(x) - 1

    def obeyed(self, asked: Tensor, found: Tensor) -> Tensor:
        return share_that_agrees(asked, found)
