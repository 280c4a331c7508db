import math
from itertools import pairwise

import pytest
import torch

from flowdiff import registry
from flowdiff.testing import oracles

SIGMAS = [10.0, 4.0, 1.5, 0.6, 0.2, 0.0]


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 3.0])
def test_mean_and_variance_on_a_gaussian_follow_the_recursion(eta):
    """On N(μ, τ²) a step is x' − μ = a·(x − μ) + σ_up·z with known a, which gives the exact moments on any grid."""
    mu, tau2, n = 0.3, 0.25, 40_000
    generator = torch.Generator().manual_seed(0)
    x = 10 * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    oracle = oracles.Gaussian(torch.tensor([mu]), torch.tensor([[tau2]]))
    got = registry.create("sampler", "ancestral", eta=eta)(oracle, x, SIGMAS, generator=generator)

    mean, variance = -mu, 100.0  # of x − μ
    for sigma, after in pairwise(SIGMAS):
        up = min(after, eta * math.sqrt(after**2 * (sigma**2 - after**2) / sigma**2))
        down = math.sqrt(after**2 - up**2)
        shrink = tau2 / (tau2 + sigma**2)
        a = shrink + down / sigma * (1 - shrink)
        mean, variance = a * mean, a**2 * variance + up**2
    # 4 standard errors of a normal sample's mean and variance
    assert got.mean().item() == pytest.approx(mu + mean, abs=4 * math.sqrt(variance / n))
    assert got.var().item() == pytest.approx(variance, rel=4 * math.sqrt(2 / n))


def test_eta_zero_is_euler_and_draws_nothing():
    mixture = oracles.two_by_two()
    source = torch.Generator().manual_seed(0)
    state = source.get_state()
    x = 10 * torch.randn(4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    got = registry.create("sampler", "ancestral", eta=0.0)(mixture, x, SIGMAS, generator=source)
    torch.testing.assert_close(got, registry.create("sampler", "euler")(mixture, x, SIGMAS))
    assert torch.equal(source.get_state(), state)


def test_no_noise_is_added_at_the_end():
    """There is one draw fewer than steps: the last step adds no noise."""
    source = torch.Generator().manual_seed(0)
    registry.create("sampler", "ancestral", eta=1.0)(oracles.two_by_two(), torch.ones(3, 2), SIGMAS, generator=source)
    expected = torch.Generator().manual_seed(0)
    for _ in range(len(SIGMAS) - 2):
        torch.randn(3, 2, generator=expected)
    assert torch.equal(source.get_state(), expected.get_state())
