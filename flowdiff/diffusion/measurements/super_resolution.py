"""Super-resolution: a smaller picture is seen."""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from flowdiff.diffusion.measurements.base import Measurement
from flowdiff.errors import ConfigurationError
from flowdiff.registry import register
from flowdiff.shapes import times


@register("measurement", "super_resolution")
class SuperResolution(Measurement):
    """The mean of each block of factor × factor pixels.

    (A·x)_block = mean of x over the block,  A·Aᵀ = I/factor²

    Args:
        shape: shape of a sample, (C, H, W).
        factor: side of a block in pixels, ≥ 1; it divides H and W.
        sigma_y: standard deviation of the noise of y, ≥ 0, in the unit of the data.

    Raises:
        ConfigurationError: the samples are vectors, or the factor does not divide H and W.
    """

    def __init__(self, shape: tuple[int, ...], *, factor: PositiveInt, sigma_y: NonNegativeFloat):
        super().__init__(shape, sigma_y)
        if len(self.shape) != 3 or self.shape[1] % factor or self.shape[2] % factor:
            raise ConfigurationError(
                f"measurement.factor={factor} does not divide the height and the width of a sample of "
                f"{times(self.shape)}: choose a divisor of both; vectors have no blocks of pixels."
            )
        self.factor = factor

    def __call__(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.factor)
