import pytest
import torch

from flowdiff import registry
from flowdiff.diffusion.samplers.generate import CountCalls
from flowdiff.testing import oracles

MIXTURE = oracles.two_by_two()
SIGMAS = [80.0, 0.002, 0.0]


def adaptive(tolerance):
    return registry.create("sampler", "adaptive", rtol=tolerance, atol=tolerance)


def start(n):
    return 80 * torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_error_and_cost_follow_the_tolerance():
    x = start(64)
    exact = registry.create("sampler", "heun")(MIXTURE, x, registry.create("schedule", "karras")(1000))
    errors, rows = [], []
    for tolerance in (1e-1, 1e-2, 1e-3):
        counted = CountCalls(MIXTURE)
        errors.append(float((adaptive(tolerance)(counted, x, SIGMAS) - exact).square().mean().sqrt()))
        rows.append(counted.rows / 64)
    # tolerances are per step of some ten; samples near a border between bumps magnify what is left
    assert all(error < 20 * tolerance for error, tolerance in zip(errors, (1e-1, 1e-2, 1e-3), strict=True))
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    # the local error is of order 2: a tolerance 10 times smaller takes √10 times the steps
    assert 2 < rows[2] / rows[1] < 4
    assert rows[0] < rows[1] < 100


def test_a_sample_pays_for_itself_only():
    """Alone and among others a sample is asked for equally often; they need not be equally often."""
    x = start(8)
    together = CountCalls(MIXTURE)
    adaptive(1e-2)(together, x, SIGMAS)
    alone = []
    for i in range(8):
        counted = CountCalls(MIXTURE)
        adaptive(1e-2)(counted, x[i : i + 1], SIGMAS)
        alone.append(counted.rows)
    assert together.rows == sum(alone)
    assert len(set(alone)) > 1


def test_straight_trajectories_take_few_steps():
    """Of a point the trajectories are straight: only the growth of the steps, fivefold, is to be waited for."""
    counted = CountCalls(oracles.Mixture(torch.tensor([[0.3, -0.2]]), torch.tensor([1e-6])))
    got = adaptive(1e-2)(counted, start(4), SIGMAS)
    torch.testing.assert_close(got, torch.tensor([[0.3, -0.2]], dtype=torch.float64).expand(4, 2), atol=1e-6, rtol=0)
    assert counted.rows / 4 < 12


def test_levels_of_the_grid_are_met():
    seen = []
    adaptive(1e-2)(MIXTURE, start(2), [80.0, 3.0, 0.5, 0.0], callback=lambda step, sigma, x, _: seen.append(sigma))
    assert seen == [80.0, 3.0, 0.5]


def test_a_lost_sample_ends_and_disturbs_no_other():
    x = start(3)
    spoilt = x.clone()
    spoilt[1] = float("nan")
    got = adaptive(1e-2)(MIXTURE, spoilt, SIGMAS)
    assert got[1].isnan().all()
    torch.testing.assert_close(got[[0, 2]], adaptive(1e-2)(MIXTURE, x, SIGMAS)[[0, 2]])


def test_a_tolerance_that_cannot_be_met_ends_too():
    """The smallest steps are made whatever their error: 1e-3 in ln σ."""
    counted = CountCalls(MIXTURE)
    got = registry.create("sampler", "adaptive", rtol=1e-14, atol=0.0)(counted, start(1), [1.05, 1.0, 0.0])
    assert got.isfinite().all()
    assert counted.rows < 200


def test_tolerances_have_to_be_positive():
    from flowdiff.errors import ConfigurationError

    with pytest.raises(ConfigurationError, match=r"sampler\.rtol=0\.0 is not allowed"):
        adaptive(0.0)
