"""The image in low resolution."""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from flowdiff.data.hints.base import Hint
from flowdiff.errors import ConfigurationError
from flowdiff.registry import register
from flowdiff.shapes import times


@register("hint", "low_resolution")
class LowResolution(Hint):
    """The mean of each block of factor × factor pixels, shown at the size of the image.

    Agreement is the root mean square difference of the blocks.

    Args:
        shape: shape of an image, (C, H, W).
        factor: side of a block in pixels, ≥ 2; it divides H and W.

    Raises:
        ConfigurationError: the factor does not divide H and W, or the samples are no images.
    """

    agreement = "low_resolution_error"

    def __init__(self, shape: tuple[int, ...], *, factor: Annotated[int, Field(ge=2)]):
        super().__init__(shape)
        self.channels = shape[0]
        self.factor = factor
        if shape[1] % factor or shape[2] % factor:
            raise ConfigurationError(
                f"factor={factor} of hint=low_resolution does not divide the height and the width of images of "
                f"{times(shape)}: choose a divisor of both."
            )

    def __call__(self, x: Tensor) -> Tensor:
        blocks = F.avg_pool2d(x, self.factor)
        return blocks.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3)
