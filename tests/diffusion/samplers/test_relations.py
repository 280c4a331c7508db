"""Samplers that coincide, the calls that they cost, when they draw noise, and what they refuse."""

import math

import pytest
import torch

from flowdiff import registry
from flowdiff.errors import ConfigurationError
from flowdiff.testing import oracles
from flowdiff.testing.count_calls import CountCalls
from flowdiff.testing.samplers import seeded, start

MIXTURE = oracles.two_by_two()
SIGMAS = [10.0, 4.0, 1.5, 0.6, 0.2, 0.0]


# Names and settings of two samplers that are the same method, and whether they compute it by the same operations.
@pytest.mark.parametrize(
    ("one", "other", "exactly"),
    [
        (("ddim", {}), ("euler", {}), True),
        (("dpm_solver_1", {}), ("ddim", {}), True),
        (("ddpm", {}), ("ancestral", {"eta": 1.0}), True),
        (("ancestral", {"eta": 0.0}), ("euler", {}), False),
        (("lms", {"order": 1}), ("euler", {}), False),
        (("dpmpp_2m_sde", {"eta": 0.0}), ("dpmpp_2m", {}), False),
    ],
    ids=str,
)
@pytest.mark.parametrize("sigmas", [SIGMAS, [5.0 * 0.02 ** (i / 20) for i in range(21)]], ids=["few", "many"])
def test_same_method(one, other, exactly, sigmas):
    samplers = [registry.create("sampler", name, **settings) for name, settings in (one, other)]
    x = start(4, sigmas[0])
    found, expected = (sampler(MIXTURE, x, sigmas, generator=seeded(2)) for sampler in samplers)
    torch.testing.assert_close(found, expected, **({"rtol": 0, "atol": 0} if exactly else {}))


@pytest.mark.parametrize(
    ("name", "settings", "calls"),
    [
        ("heun", {}, 9),  # two in each of five steps, and one in the last
        ("dpm_solver_2", {}, 9),
        ("dpmpp_2s", {}, 9),
        *(("unipc", {"order": order}, 5) for order in (1, 2, 3)),  # the corrector needs none
        ("langevin", {"corrector_steps": 2}, 5 + 4 * 2),  # no corrector at σ = 0
    ],
    ids=str,
)
def test_calls(name, settings, calls):
    counted = CountCalls(MIXTURE)
    registry.create("sampler", name, **settings)(counted, torch.ones(3, 2), SIGMAS, generator=seeded())
    assert (counted.calls, counted.rows) == (calls, 3 * calls)


@pytest.mark.parametrize(
    ("name", "settings", "draws"),
    [
        ("ancestral", {"eta": 0.0}, 0),
        ("ancestral", {"eta": 1.0}, 4),  # the last step adds no noise
        *(("heun", churn, 0) for churn in ({}, {"s_churn": 40.0, "s_max": 0.1}, {"s_churn": 40.0, "s_min": 11.0})),
        *((name, quiet, 0) for name in ("dpmpp_2m_sde", "dpmpp_3m_sde") for quiet in ({"eta": 0.0}, {"s_noise": 0.0})),
    ],
    ids=str,
)
def test_draws_of_noise(name, settings, draws):
    source, expected = seeded(), seeded()
    registry.create("sampler", name, **settings)(MIXTURE, start(3, 10.0), SIGMAS, generator=source)
    for _ in range(draws):
        torch.randn(3, 2, generator=expected)
    assert torch.equal(source.get_state(), expected.get_state())


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("adaptive", {"rtol": 0.0, "atol": 0.0}, r"sampler\.rtol=0\.0 is not allowed"),
        ("heun", {"s_min": 2.0, "s_max": 1.0}, "s_min=2 is above s_max=1"),
        *((name, {"eta": 11.0}, r"sampler\.eta=11\.0 is not allowed") for name in ("dpmpp_2m_sde", "dpmpp_3m_sde")),
        *(("langevin", {"snr": snr}, r"sampler\.snr=\S+ is not allowed") for snr in (0.0, 1.0)),
        ("langevin", {"corrector_steps": 0}, r"sampler\.corrector_steps=\S+ is not allowed"),
    ],
)
def test_invalid_settings_are_refused(name, settings, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        registry.create("sampler", name, **settings)


def test_second_order_of_one_step_uses_the_midpoint():
    """On N(0, τ²) D = x·τ²/(τ²+σ²), and the slope (x − D)/σ at x is x·σ/(τ²+σ²)."""
    tau2, middle = 0.25, math.sqrt(2.0 * 0.5)
    oracle = oracles.Gaussian(torch.zeros(1), torch.tensor([[tau2]]))
    x = torch.tensor([[1.0], [-3.0]], dtype=torch.float64)
    by_slope, by_denoised = (
        registry.create("sampler", name)(oracle, x, [2.0, 0.5]) for name in ("dpm_solver_2", "dpmpp_2s")
    )
    x_middle = x * (1 + (middle - 2.0) * 2.0 / (tau2 + 4.0))
    torch.testing.assert_close(by_slope, x + (0.5 - 2.0) * middle / (tau2 + middle**2) * x_middle)
    shrink = tau2 / (tau2 + 4.0)
    denoised = x * (shrink + middle / 2.0 * (1 - shrink)) * tau2 / (tau2 + middle**2)
    torch.testing.assert_close(by_denoised, denoised + 0.5 / 2.0 * (x - denoised))
