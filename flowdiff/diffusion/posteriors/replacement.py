"""Replacement: what is measured takes the place of what D says about it."""

from __future__ import annotations

from torch import Tensor

from flowdiff.diffusion.guidance.base import Guidable
from flowdiff.diffusion.measurements.base import Measurement
from flowdiff.diffusion.posteriors.steering import Steering
from flowdiff.models.conditioning import Conditioning
from flowdiff.registry import register


@register("posterior", "replacement")
class Replacement(Steering):
    """p(x0|x) taken as N(D, σ²·I), without a derivative of D: y changes what is not measured only through x.

    D_y = D + Aᵀ·(A·Aᵀ + (σ_y/σ)²·I)⁻¹·(y − A·D)

    Without noise D_y = D + A⁺·(y − A·D), whose measurement is y; of inpainting, the seen pixels are those of y. It
    costs no further evaluation and takes any guidance.

    Args:
        measurement: A and σ_y.

    Source: Song et al., Score-based generative modeling through stochastic differential equations, 2021, appendix I;
        Wang, Yu, Zhang, Zero-shot image restoration using denoising diffusion null-space model, 2023.
    """

    def __init__(self, measurement: Measurement):
        super().__init__(measurement)

    def steered(self, denoiser: Guidable, x: Tensor, sigma: Tensor, cond: Conditioning | None, y: Tensor) -> Tensor:
        D = denoiser(x, sigma, cond)
        misfit = y - self.measurement(D)
        noise = (self.measurement.sigma_y / sigma) ** 2
        return D + self.measurement.transposed(self.measurement.solved(misfit, noise.new_ones(noise.shape), noise)).to(
            D
        )
