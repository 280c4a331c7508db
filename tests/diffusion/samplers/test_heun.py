import math
from itertools import pairwise

import pytest
from gaussian_samples import TAU2, has_variance, samples_of_gaussian

from flowdiff import registry

SIGMAS = [10.0, 4.0, 1.5, 0.6, 0.2, 0.0]


def heun(**settings):
    return registry.create("sampler", "heun", num_steps=5, **settings)


@pytest.mark.parametrize(
    "churn",
    [
        {"s_churn": 0.0, "s_min": 0.0, "s_max": math.inf, "s_noise": 1.0},
        {"s_churn": 1.0, "s_min": 0.0, "s_max": math.inf, "s_noise": 2.0},
        {"s_churn": 80.0, "s_min": 0.5, "s_max": 5.0, "s_noise": 1.0},  # above the limit of √2 − 1
    ],
)
def test_variance_on_a_gaussian_follows_the_recursion(churn):
    """On N(0, τ²) algorithm 2 is linear in x, so that the variance obeys a recursion on any grid."""
    got, tau2, variance = samples_of_gaussian(heun(**churn), SIGMAS), TAU2, 100.0
    for sigma, after in pairwise(SIGMAS):
        inside = churn["s_min"] <= sigma <= churn["s_max"]
        gamma = min(churn["s_churn"] / 5, math.sqrt(2) - 1) if inside else 0
        hat = sigma * (1 + gamma)
        variance += (hat**2 - sigma**2) * churn["s_noise"] ** 2
        slope = hat / (tau2 + hat**2)  # (x − D)/σ̂ = x·σ̂/(τ² + σ̂²)
        factor = 1 + (after - hat) * slope
        if after > 0:
            factor = 1 + (after - hat) / 2 * (slope + after / (tau2 + after**2) * factor)
        variance *= factor**2
    has_variance(got, variance)
