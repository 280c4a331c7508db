"""No measurement."""

from __future__ import annotations

from torch import Tensor

from flowdiff.diffusion.measurements.base import Measurement
from flowdiff.registry import Requirement, register

NEEDS_NO_POSTERIOR = Requirement(
    "posterior",
    fits=lambda posterior, node: node["name"] == "none",
    reason="a posterior is that of a measurement, and there is none",
    remedy="choose what is measured, e.g. measurement=inpaint, or set posterior=none",
)


@register("measurement", "none", requires=[NEEDS_NO_POSTERIOR])
class NoMeasurement(Measurement):
    """Nothing is measured: y has no numbers.

    Args:
        shape: shape of a sample.
    """

    def __init__(self, shape: tuple[int, ...]):
        super().__init__(shape, 0.0)

    def __call__(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :0]
