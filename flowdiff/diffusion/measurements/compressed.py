"""Compressed sensing: a few random projections are seen."""

from __future__ import annotations

import math

import torch
from pydantic import NonNegativeFloat, NonNegativeInt
from torch import Tensor

from flowdiff.diffusion.measurements.base import Measurement
from flowdiff.diffusion.measurements.inpaint import Share
from flowdiff.errors import ConfigurationError
from flowdiff.registry import register
from flowdiff.shapes import times

MOST = 16384  # dimensions; the matrix has share·dimensions² numbers


@register("measurement", "compressed")
class Compressed(Measurement):
    """Projections on random orthonormal directions.

    A·x = Q·x,  Q·Qᵀ = I

    Args:
        shape: shape of a sample.
        share: number of projections as a share of the dimensions, in (0, 1); at least one is made.
        seed: seed of the directions, ≥ 0.
        sigma_y: standard deviation of the noise of y, ≥ 0, in the unit of the data.

    Raises:
        ConfigurationError: a sample has more than 16,384 dimensions.

    Source: Candès, Romberg, Tao, Stable signal recovery from incomplete and inaccurate measurements, 2006.
    """

    def __init__(self, shape: tuple[int, ...], *, share: Share, seed: NonNegativeInt, sigma_y: NonNegativeFloat):
        super().__init__(shape, sigma_y)
        size = math.prod(self.shape)
        if size > MOST:
            raise ConfigurationError(
                f"measurement=compressed holds a matrix and is for at most {MOST} dimensions, and a sample of "
                f"{times(self.shape)} has {size}: choose measurement=super_resolution or inpaint."
            )
        count = max(1, round(share * size))
        drawn = torch.randn(size, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        self.rows = torch.linalg.qr(drawn).Q.T

    def __call__(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.rows.T.to(x)
