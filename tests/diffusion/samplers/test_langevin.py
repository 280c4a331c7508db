import math
from itertools import pairwise

import pytest
import torch
from gaussian_samples import TAU2, has_variance, samples_of_gaussian

from flowdiff import registry
from flowdiff.testing import oracles

SIGMAS = [10.0, 4.0, 1.5, 0.6, 0.2, 0.0]


def langevin(**settings):
    return registry.create("sampler", "langevin", **settings)


@pytest.mark.parametrize("settings", [{"eta": 0.0, "snr": 0.4}, {"eta": 1.0, "snr": 0.1, "corrector_steps": 3}])
def test_variance_on_a_gaussian_follows_the_recursion(settings):
    """On N(0, τ²) every part is linear in x, so that the variance obeys a recursion on any grid."""
    sampler = langevin(**settings)
    got, tau2, variance = samples_of_gaussian(sampler, SIGMAS), TAU2, 100.0
    for sigma, after in pairwise(SIGMAS):
        up = settings["eta"] * after * math.sqrt(1 - (after / sigma) ** 2)
        down = math.sqrt(after**2 - up**2)
        shrink = tau2 / (tau2 + sigma**2)
        variance = (shrink + down / sigma * (1 - shrink)) ** 2 * variance + up**2
        for _ in range(sampler.corrector_steps if after > 0 else 0):
            epsilon = 2 * (sampler.snr * after) ** 2
            variance = (1 - epsilon / (tau2 + after**2)) ** 2 * variance + 2 * epsilon
    has_variance(got, variance)


def test_corrector_removes_the_error_of_few_levels():
    """Many Langevin steps at few levels give the mixture's weights; the predictor alone does not."""
    mixture = oracles.two_by_two()
    n = 1500
    x = 10 * torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def error(sampler):
        got = sampler(mixture, x, SIGMAS, generator=torch.Generator().manual_seed(1))
        return float((got.T.cov() - mixture.covariance).norm() / mixture.covariance.norm())

    alone = error(registry.create("sampler", "euler"))
    corrected = error(langevin(eta=0.0, snr=0.3, corrector_steps=30))
    assert corrected < alone / 2
    assert corrected < 0.15  # 5 standard errors of the covariance, and the error of the step from σ = 0.2 to 0
