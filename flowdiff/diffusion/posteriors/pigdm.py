"""Pseudoinverse-guided diffusion: x0 given x as an isotropic Gaussian."""

from __future__ import annotations

from torch import Tensor

from flowdiff.diffusion.guidance.base import Guidable
from flowdiff.diffusion.measurements.base import Measurement
from flowdiff.diffusion.posteriors.steering import Steering
from flowdiff.models.conditioning import Conditioning
from flowdiff.registry import register
from flowdiff.shapes import append_dims


@register("posterior", "pigdm")
class PiGDM(Steering):
    """x0 given x as N(D, r²·I), with a variance that is the same for all numbers.

    D_y = D + σ²·(∂D/∂x)ᵀ·Aᵀ·(r²·A·Aᵀ + σ_y²·I)⁻¹·(y − A·D),    r² = σ²σ_data²/(σ² + σ_data²)

    Exact for data N(0, σ_data²·I). It costs one derivative of D.

    Args:
        measurement: A and σ_y.
        sigma_data: root mean square of the data.

    Source: Song, Vahdat, Mardani, Kautz, Pseudoinverse-guided diffusion models for inverse problems, 2023.
    """

    differentiates = True

    def __init__(self, measurement: Measurement, sigma_data: float):
        super().__init__(measurement)
        self.sigma_data = sigma_data

    def steered(self, denoiser: Guidable, x: Tensor, sigma: Tensor, cond: Conditioning | None, y: Tensor) -> Tensor:
        D, pulled = self.linearised(denoiser, x, sigma, cond)
        variance = sigma**2 * self.sigma_data**2 / (sigma**2 + self.sigma_data**2)
        misfit = y - self.measurement(D)
        weighed = self.measurement.solved(
            misfit, variance, variance.new_full(variance.shape, self.measurement.sigma_y**2)
        )
        return D + append_dims(sigma**2, x.ndim) * pulled(self.measurement.transposed(weighed))
