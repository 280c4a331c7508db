"""Blur: a picture out of focus is seen."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from flowdiff.diffusion.measurements.base import Measurement
from flowdiff.errors import ConfigurationError
from flowdiff.registry import register
from flowdiff.shapes import times

REACH = 3  # standard deviations after which the kernel is cut


@register("measurement", "blur")
class Blur(Measurement):
    """Each channel convolved with a Gaussian kernel; the picture is mirrored at its edges.

    A·x = k * x,  k(i, j) ∝ exp(−(i² + j²)/(2·width²)),  Σ k = 1

    Args:
        shape: shape of a sample, (C, H, W).
        width: standard deviation of the kernel in pixels, > 0.
        sigma_y: standard deviation of the noise of y, ≥ 0, in the unit of the data. Without noise the inverse of a blur
            is ill-conditioned.

    Raises:
        ConfigurationError: the samples are vectors.
    """

    def __init__(self, shape: tuple[int, ...], *, width: PositiveFloat, sigma_y: NonNegativeFloat):
        super().__init__(shape, sigma_y)
        if len(self.shape) != 3:
            raise ConfigurationError(
                f"measurement=blur is for images, and a sample is a vector of {times(self.shape)}: choose "
                "measurement=inpaint or compressed."
            )
        self.kernels = [_kernel(width, size) for size in self.shape[1:]]

    def __call__(self, x: Tensor) -> Tensor:
        channels = self.shape[0]
        down, across = (kernel.to(x) for kernel in self.kernels)
        padding = (len(across) // 2, len(across) // 2, len(down) // 2, len(down) // 2)
        x = F.pad(x, padding, mode="reflect")
        x = F.conv2d(x, down.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
        return F.conv2d(x, across.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)

    def as_sample(self, y: Tensor) -> Tensor:
        return y  # a picture itself, while A⁺ amplifies its noise


def _kernel(width: float, size: int) -> Tensor:
    """The kernel along an axis of so many pixels, float64; a mirror has size − 1 further pixels at each end."""
    reach = min(math.ceil(REACH * width), size - 1)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / width) ** 2)
    return kernel / kernel.sum()
