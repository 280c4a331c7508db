"""Moment-matching posterior sampling: x0 given x as the Gaussian with the mean and the covariance that D knows."""

from __future__ import annotations

from pydantic import PositiveInt
from torch import Tensor

from flowdiff.diffusion.conjugate_gradient import solve
from flowdiff.diffusion.guidance.base import Guidable
from flowdiff.diffusion.measurements.base import Measurement
from flowdiff.diffusion.posteriors.steering import Steering
from flowdiff.models.conditioning import Conditioning
from flowdiff.registry import register
from flowdiff.shapes import append_dims


@register("posterior", "mmps")
class MMPS(Steering):
    """x0 given x as N(D, V) with V = σ²·∂D/∂x, which is Cov[x0|x] by the second-order Tweedie formula.

    D_y = D + V·Aᵀ·(A·V·Aᵀ + σ_y²·I)⁻¹·(y − A·D)

    Exact for Gaussian data. The system is solved by conjugate gradients, which use the transposed Jacobian of D for V:
    of a density it is symmetric and exact, of a raw network it need not be. Each iteration costs one derivative of D,
    and there is one more.

    Args:
        measurement: A and σ_y.
        iterations: of conjugate gradients, ≥ 1. Fewer than y has numbers also regularise.

    Source: Rozet, Andry, Lanusse, Louppe, Learning diffusion priors from observations by expectation maximization,
    2024.
    """

    differentiates = True

    def __init__(self, measurement: Measurement, *, iterations: PositiveInt):
        super().__init__(measurement)
        self.iterations = iterations

    def steered(self, denoiser: Guidable, x: Tensor, sigma: Tensor, cond: Conditioning | None, y: Tensor) -> Tensor:
        A = self.measurement
        D, pulled = self.linearised(denoiser, x, sigma, cond)
        variance = append_dims(sigma**2, x.ndim)

        def spread(v: Tensor) -> Tensor:
            return variance * pulled(A.transposed(v))  # V·Aᵀ·v

        weighed = solve(lambda v: A(spread(v)) + A.sigma_y**2 * v, y - A(D), self.iterations)
        return D + spread(weighed)
