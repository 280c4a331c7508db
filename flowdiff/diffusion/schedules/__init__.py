"""Schedules: the grid of noise levels σ_max = σ₀ > σ₁ > … > σ_{N−1} > σ_N = 0 that a sampler steps down."""

from flowdiff.diffusion.schedules.base import Schedule, check_range
from flowdiff.diffusion.schedules.tables import Table, ddpm_sigmas

__all__ = ["Schedule", "Table", "check_range", "ddpm_sigmas"]
