"""Colourising: the grey picture is seen."""

from __future__ import annotations

from pydantic import NonNegativeFloat
from torch import Tensor

from flowdiff.diffusion.measurements.base import Measurement
from flowdiff.errors import ConfigurationError
from flowdiff.registry import register
from flowdiff.shapes import times


@register("measurement", "colourise")
class Colourise(Measurement):
    """The mean of the channels of each pixel.

    A·x = mean of x over its channels,  A·Aᵀ = I/C

    Args:
        shape: shape of a sample, (C, H, W) with C ≥ 2.
        sigma_y: standard deviation of the noise of y, ≥ 0, in the unit of the data.

    Raises:
        ConfigurationError: the samples are grey images or vectors.
    """

    def __init__(self, shape: tuple[int, ...], *, sigma_y: NonNegativeFloat):
        super().__init__(shape, sigma_y)
        if len(self.shape) != 3 or self.shape[0] < 2:
            raise ConfigurationError(
                f"measurement=colourise is for colour images, and a sample has the shape {times(self.shape)}: choose "
                "another measurement, e.g. measurement=inpaint."
            )

    def __call__(self, x: Tensor) -> Tensor:
        return x.mean(1, keepdim=True)
