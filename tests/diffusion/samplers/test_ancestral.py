import math
from itertools import pairwise

import pytest
from gaussian_samples import TAU2, has_variance, samples_of_gaussian

from flowdiff import registry

SIGMAS = [10.0, 4.0, 1.5, 0.6, 0.2, 0.0]


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 3.0])
def test_mean_and_variance_on_a_gaussian_follow_the_recursion(eta):
    """On N(μ, τ²) a step is x' − μ = a·(x − μ) + σ_up·z with known a, which gives the exact moments on any grid."""
    mu, tau2 = 0.3, TAU2
    got = samples_of_gaussian(registry.create("sampler", "ancestral", eta=eta), SIGMAS, mu)
    mean, variance = -mu, 100.0  # of x − μ
    for sigma, after in pairwise(SIGMAS):
        up = min(after, eta * math.sqrt(after**2 * (sigma**2 - after**2) / sigma**2))
        down = math.sqrt(after**2 - up**2)
        shrink = tau2 / (tau2 + sigma**2)
        a = shrink + down / sigma * (1 - shrink)
        mean, variance = a * mean, a**2 * variance + up**2
    assert got.mean().item() == pytest.approx(mu + mean, abs=4 * math.sqrt(variance / len(got)))  # 4 standard errors
    has_variance(got, variance)
