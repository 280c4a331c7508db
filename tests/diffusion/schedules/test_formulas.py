import math

import pytest
import torch

from flowdiff import registry


def test_karras_is_evenly_spaced_in_a_power_of_sigma():
    sigmas = registry.create("schedule", "karras", sigma_min=0.01, sigma_max=50.0, rho=5.0)(9)[:-1]
    steps = (sigmas**0.2).diff()
    torch.testing.assert_close(steps, steps[0].expand(8))
    assert sigmas[-1].item() == pytest.approx(0.01, rel=1e-12)


def test_exponential_is_geometric():
    sigmas = registry.create("schedule", "exponential", sigma_min=0.01, sigma_max=50.0)(9)[:-1]
    ratios = sigmas[1:] / sigmas[:-1]
    torch.testing.assert_close(ratios, ratios[0].expand(8))
    assert sigmas[-1].item() == pytest.approx(0.01, rel=1e-12)


@pytest.mark.parametrize("rho", [0.5, 1.0, 3.0])
def test_polyexponential_is_evenly_spaced_in_a_power_of_the_logarithm(rho):
    sigmas = registry.create("schedule", "polyexponential", sigma_min=0.01, sigma_max=50.0, rho=rho)(9)[:-1]
    steps = ((sigmas / 0.01).log() / math.log(5000)).clamp(min=0) ** (1 / rho)
    torch.testing.assert_close(steps, torch.linspace(1, 0, 9, dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_polyexponential_at_power_one_is_exponential():
    settings = {"sigma_min": 0.01, "sigma_max": 50.0, "rho": 1.0}
    poly, plain = (registry.create("schedule", name, **settings)(12) for name in ("polyexponential", "exponential"))
    torch.testing.assert_close(poly, plain, rtol=1e-12, atol=0)
