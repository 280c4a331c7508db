"""Measurements: what is seen of a clean sample, y = A·x0 + σ_y·noise with a linear A."""

from flowdiff.diffusion.measurements.base import Measurement

__all__ = ["Measurement"]
