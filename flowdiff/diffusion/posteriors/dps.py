"""Diffusion posterior sampling: down the gradient of the misfit of D."""

from __future__ import annotations

from pydantic import PositiveFloat
from torch import Tensor

from flowdiff.diffusion.guidance.base import Guidable
from flowdiff.diffusion.measurements.base import Measurement
from flowdiff.diffusion.posteriors.steering import Steering
from flowdiff.models.conditioning import Conditioning
from flowdiff.registry import register
from flowdiff.shapes import append_dims, sum_except_batch


@register("posterior", "dps")
class DPS(Steering):
    """The misfit of D as if x0 were D, with a gradient whose length does not depend on the misfit.

    D_y = D − ζ·σ·∇ₓ‖y − A·D‖

    It does not read σ_y, and its draws are not those of the posterior. It costs one derivative of D.

    Args:
        measurement: A and σ_y.
        scale: ζ > 0.

    Source: Chung, Kim, McCann, Klasky, Ye, Diffusion posterior sampling for general noisy inverse problems, 2023; the
        step ζ/‖y − A·D‖ of its algorithm 1, in units of σ.
    """

    differentiates = True

    def __init__(self, measurement: Measurement, *, scale: PositiveFloat):
        super().__init__(measurement)
        self.scale = scale

    def steered(self, denoiser: Guidable, x: Tensor, sigma: Tensor, cond: Conditioning | None, y: Tensor) -> Tensor:
        D, pulled = self.linearised(denoiser, x, sigma, cond)
        misfit = y - self.measurement(D)
        length = append_dims(sum_except_batch(misfit**2).sqrt().clamp_min(1e-30), misfit.ndim)
        towards = pulled(self.measurement.transposed(misfit / length))  # −∇ₓ‖y − A·D‖
        return D + self.scale * append_dims(sigma, x.ndim) * towards
