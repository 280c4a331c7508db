"""`optimal`, fitted to the mixture's exact denoiser."""

import itertools
import json
import math
from functools import partial

import pytest
import torch

from flowdiff import registry
from flowdiff.diffusion.samplers.generate import generate
from flowdiff.diffusion.schedules.optimal import _cheapest
from flowdiff.errors import ConfigurationError
from flowdiff.testing import oracles
from flowdiff.testing.samplers import start
from flowdiff.testing.schedules import grid_can_start_lower, grid_decreases_to_zero

MIXTURE = oracles.two_by_two()
KARRAS = registry.create("schedule", "karras")
WALKER = registry.create("sampler", "dpmpp_2m")


def walk(sigmas, n, callback, denoiser=MIXTURE):
    return WALKER(denoiser, start(n, float(sigmas[0])), sigmas, callback=callback)


def optimal(**settings):
    return registry.create("schedule", "optimal", **settings)


@pytest.fixture(scope="module")
def fitted():
    return optimal().fitted(walk)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 10, 18, 64])
def test_grids(fitted, num_steps):
    assert fitted.sigma_max == 80.0
    assert fitted.sigma_min == 0.002
    grid_decreases_to_zero(fitted, num_steps)
    if num_steps <= 10:
        for sigma_max in (79.0, 1.7):
            grid_can_start_lower(fitted, num_steps, sigma_max)
        for sigma_max in (0.0021, 0.002, 0.001):  # few levels are left
            sigmas = fitted(num_steps, sigma_max=sigma_max)
            assert (sigmas[0].item(), sigmas[-1].item()) == (sigma_max, 0)
            assert (sigmas.diff() < 0).all()
    with pytest.raises(ConfigurationError, match="num_steps=65 is not allowed: schedule=optimal chooses among 64"):
        fitted(65)


def test_straight_trajectories_have_no_error():
    """Where D is the same everywhere, an Euler step of any length is exact."""
    point = oracles.Mixture(torch.tensor([[0.5, -0.5]]), torch.tensor([1e-9]))
    _, errors = optimal(num_levels=8).fitted(partial(walk, denoiser=point))._measured
    assert errors[errors.isfinite()].max() < 1e-8


@pytest.mark.parametrize("num_steps", [5, 10, 20])
@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "dpmpp_2s", "unipc"])
def test_is_closer_to_the_solution_than_karras(fitted, name, num_steps):
    sampler = registry.create("sampler", name, num_steps=num_steps)
    settings = {"n": 64, "seed": 1, "batch_size": 64}  # not the samples it was measured on
    exact = generate(MIXTURE, registry.create("sampler", "heun", num_steps=200), KARRAS, (2,), **settings)
    errors = [(generate(MIXTURE, sampler, schedule, (2,), **settings) - exact).norm() for schedule in (fitted, KARRAS)]
    assert errors[0] < 0.9 * errors[1]


def test_before_fitting_it_is_exponential():
    even = registry.create("schedule", "exponential")
    assert torch.equal(optimal()(7), even(7))
    assert torch.equal(optimal()(7, sigma_max=2.0), even(7, sigma_max=2.0))


def test_measured_error_is_that_of_an_euler_step_at_sigma_zero():
    """On N(0, τ²) everything is known: x_σ = x_0·√(τ²+σ²)/τ, D = τ²/(τ²+σ²)·x."""
    tau, n = 0.5, 64
    oracle = oracles.Gaussian(torch.zeros(1), torch.tensor([[tau**2]]))
    starts = torch.randn(n, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def exact(sigmas, n, callback):
        for i, sigma in enumerate(sigmas[:-1].tolist()):
            x = starts * math.sqrt(tau**2 + sigma**2) / tau
            callback(i, sigma, x, oracle(x, x.new_full((n,), sigma)))
        return starts

    levels, errors = optimal(num_levels=6, sigma_min=0.05, sigma_max=5.0).fitted(exact)._measured
    for i, j in itertools.combinations(range(7), 2):
        a, b = math.sqrt(tau**2 + levels[i] ** 2), math.sqrt(tau**2 + levels[j] ** 2)
        shrink = tau**2 / a**2
        deviation = (shrink + levels[j] / levels[i] * (1 - shrink)) * a / tau - b / tau
        expected = abs(float(deviation)) * float(starts.square().mean().sqrt()) * tau / b
        assert errors[i, j].item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_path_is_the_cheapest_of_all():
    cost = torch.rand(9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cost[torch.ones(9, 9).tril().bool()] = math.inf
    for num_steps in (1, 2, 4, 8):
        paths = [(0, *middle, 8) for middle in itertools.combinations(range(1, 8), num_steps - 1)]
        best = min(paths, key=lambda path: sum(cost[i, j].item() for i, j in itertools.pairwise(path)))
        assert _cheapest(cost, num_steps) == list(best)


def test_is_measured_once(fitted, tmp_path):
    cache = tmp_path / "levels.json"
    first = optimal().fitted(walk, cache)
    again = optimal().fitted(None, cache)  # without a walk it cannot measure
    assert torch.equal(first(10), again(10))
    assert torch.equal(first(10), fitted(10))
    other = optimal(num_levels=16).fitted(walk, cache)
    assert json.loads(cache.read_text())["asked"][2] == 16
    assert len(other._measured[0]) == 17
    assert [file.name for file in tmp_path.iterdir()] == ["levels.json"]


def test_levels_of_a_model_with_few_levels(fitted):
    """A walk may skip levels that its model rounds to the same one."""
    table = torch.tensor([80.0, 5.0, 1.0, 0.2, 0.0], dtype=torch.float64)
    coarse = optimal().fitted(lambda sigmas, n, callback: walk(table, n, callback))
    assert torch.equal(coarse(4), table)
    assert len(coarse(10)) == 5
