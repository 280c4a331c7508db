"""test_public.py compares both orders with k-diffusion and diffusers."""

import math

import torch

from flowdiff import registry
from flowdiff.testing import oracles
from flowdiff.testing.count_calls import CountCalls

MIXTURE = oracles.two_by_two()
SIGMAS = [5.0, 1.0, 0.1, 0.0]


def test_first_order_is_ddim():
    x = 5 * torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    first, ddim = (registry.create("sampler", name)(MIXTURE, x, SIGMAS) for name in ("dpm_solver_1", "ddim"))
    assert torch.equal(first, ddim)


def test_second_order_uses_the_slope_at_the_midpoint():
    """On N(0, τ²) the slope at x is x·σ/(τ²+σ²)."""
    tau2 = 0.25
    oracle = oracles.Gaussian(torch.zeros(1), torch.tensor([[tau2]]))
    x = torch.tensor([[1.0], [-3.0]], dtype=torch.float64)
    got = registry.create("sampler", "dpm_solver_2")(oracle, x, [2.0, 0.5])
    middle = math.sqrt(2.0 * 0.5)
    x_middle = x * (1 + (middle - 2.0) * 2.0 / (tau2 + 4.0))
    torch.testing.assert_close(got, x + (0.5 - 2.0) * middle / (tau2 + middle**2) * x_middle)


def test_two_calls_per_step_and_one_in_the_last():
    counted = CountCalls(MIXTURE)
    registry.create("sampler", "dpm_solver_2")(counted, torch.zeros(3, 2), SIGMAS)
    assert (counted.calls, counted.rows) == (5, 15)
