"""No posterior."""

from __future__ import annotations

from torch import Tensor

from flowdiff.diffusion.guidance.base import Guidable
from flowdiff.diffusion.measurements.base import Measurement
from flowdiff.diffusion.posteriors.steering import Steering
from flowdiff.models.conditioning import Conditioning
from flowdiff.registry import Requirement, register

NEEDS_NO_MEASUREMENT = Requirement(
    "measurement",
    fits=lambda measurement, node: node["name"] == "none",
    reason="nothing says how to draw from the posterior of this measurement",
    remedy="choose a method, e.g. posterior=mmps, or set measurement=none",
)


@register("posterior", "none", requires=[NEEDS_NO_MEASUREMENT])
class NoPosterior(Steering):
    """Samples of the model itself, whatever y is: D_y = D.

    Args:
        measurement: A and σ_y.
    """

    def __init__(self, measurement: Measurement):
        super().__init__(measurement)

    def steered(self, denoiser: Guidable, x: Tensor, sigma: Tensor, cond: Conditioning | None, y: Tensor) -> Tensor:
        return denoiser(x, sigma, cond)
