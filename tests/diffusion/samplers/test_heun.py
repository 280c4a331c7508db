import math
from itertools import pairwise

import pytest
import torch

from flowdiff import registry
from flowdiff.errors import ConfigurationError
from flowdiff.testing import oracles
from flowdiff.testing.count_calls import CountCalls

SIGMAS = [10.0, 4.0, 1.5, 0.6, 0.2, 0.0]


def heun(**settings):
    return registry.create("sampler", "heun", num_steps=5, **settings)


def test_two_calls_per_step_and_one_in_the_last():
    counted = CountCalls(oracles.two_by_two())
    heun()(counted, torch.zeros(3, 2), SIGMAS)
    assert (counted.calls, counted.rows) == (9, 27)


@pytest.mark.parametrize("settings", [{}, {"s_churn": 40.0, "s_max": 0.1}, {"s_churn": 40.0, "s_min": 11.0}])
def test_no_noise_is_drawn_without_churn(settings):
    source = torch.Generator().manual_seed(0)
    state = source.get_state()
    heun(**settings)(oracles.two_by_two(), torch.ones(3, 2), SIGMAS, generator=source)
    assert torch.equal(source.get_state(), state)


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
    tau2, n = 0.25, 40_000
    generator = torch.Generator().manual_seed(0)
    x = 10 * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    got = heun(**churn)(oracles.Gaussian(torch.zeros(1), torch.tensor([[tau2]])), x, SIGMAS, generator=generator)

    variance = 100.0
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
    # 4 standard errors of a normal sample's variance
    assert got.var().item() == pytest.approx(variance, rel=4 * math.sqrt(2 / n))


def test_empty_range_of_churn_is_refused():
    with pytest.raises(ConfigurationError, match="s_min=2 is above s_max=1"):
        heun(s_min=2.0, s_max=1.0)
