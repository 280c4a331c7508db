"""test_public.py compares lms with k-diffusion, which integrates numerically."""

import pytest
import torch

from flowdiff import registry
from flowdiff.diffusion.samplers.lms import coefficients


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_polynomials_are_integrated_exactly(order):
    sigmas, after = [0.7, 1.1, 2.0, 3.7][:order], 0.3
    c = coefficients(sigmas, after)
    for power in range(order):
        exact = (after ** (power + 1) - sigmas[0] ** (power + 1)) / (power + 1)
        assert sum(w * s**power for w, s in zip(c, sigmas, strict=True)) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_slopes_of_degree_order_minus_one_are_integrated_exactly(order):
    """D is chosen such that dx/dσ is a polynomial of σ of degree order − 1. The first steps have lower orders."""
    coefficients_ = [0.3, -0.5, 0.2, 0.1][:order]

    def denoiser(x, sigma, cond=None):
        slope = sum(c * sigma**k for k, c in enumerate(coefficients_))
        return x - (sigma * slope)[:, None]

    def solution(sigma):
        return sum(c * sigma ** (k + 1) / (k + 1) for k, c in enumerate(coefficients_))

    sigmas = [5.0, 4.0, 2.5, 2.0, 1.2, 0.3]
    seen = []
    x = torch.zeros(1, 1, dtype=torch.float64)
    end = registry.create("sampler", "lms", order=order)(
        denoiser, x, sigmas, callback=lambda step, sigma, x, denoised: seen.append(x.item())
    )
    i = order - 1  # from here on every step is exact
    assert end.item() - seen[i] == pytest.approx(solution(sigmas[-1]) - solution(sigmas[i]), rel=1e-12)
