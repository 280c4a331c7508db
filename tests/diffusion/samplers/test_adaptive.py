import torch

from flowdiff import registry
from flowdiff.testing import oracles
from flowdiff.testing.count_calls import CountCalls
from flowdiff.testing.samplers import start

MIXTURE = oracles.two_by_two()
SIGMAS = [80.0, 0.002, 0.0]


def adaptive(tolerance):
    return registry.create("sampler", "adaptive", rtol=tolerance, atol=tolerance)


def test_error_and_cost_follow_the_tolerance():
    x = start(64, 80.0)
    exact = registry.create("sampler", "heun")(MIXTURE, x, registry.create("schedule", "karras")(1000))
    errors, rows = [], []
    for tolerance in (1e-1, 1e-2, 1e-3):
        counted = CountCalls(MIXTURE)
        errors.append(float((adaptive(tolerance)(counted, x, SIGMAS) - exact).square().mean().sqrt()))
        rows.append(counted.rows / 64)
    # the tolerance holds for each of about ten steps; samples near a border between bumps magnify their error
    assert all(error < 20 * tolerance for error, tolerance in zip(errors, (1e-1, 1e-2, 1e-3), strict=True))
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    # the local error is of order 2: a tolerance 10 times smaller takes √10 times the steps
    assert 2 < rows[2] / rows[1] < 4
    assert rows[0] < rows[1] < 100


def test_cost_of_a_sample_does_not_depend_on_its_batch():
    """A sample takes as many calls alone as in a batch; different samples may take different numbers of calls."""
    x = start(8, 80.0)
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
    """Trajectories to a point are straight: only the growth of the steps, by a factor of 5 at most, costs calls."""
    counted = CountCalls(oracles.Mixture(torch.tensor([[0.3, -0.2]]), torch.tensor([1e-6])))
    got = adaptive(1e-2)(counted, start(4, 80.0), SIGMAS)
    torch.testing.assert_close(got, torch.tensor([[0.3, -0.2]], dtype=torch.float64).expand(4, 2), atol=1e-6, rtol=0)
    assert counted.rows / 4 < 12


def test_sampling_reaches_the_levels_of_the_grid_and_ends_when_the_tolerance_is_unreachable():
    """The smallest steps, 1e-3 in ln σ, are accepted whatever their error."""
    seen, x = [], start(2, 80.0)
    adaptive(1e-2)(MIXTURE, x, [80.0, 3.0, 0.5, 0.0], callback=lambda step, sigma, x, _: seen.append(sigma))
    assert seen == [80.0, 3.0, 0.5]
    counted = CountCalls(MIXTURE)
    got = registry.create("sampler", "adaptive", rtol=1e-14, atol=0.0)(counted, x[:1], [1.05, 1.0, 0.0])
    assert got.isfinite().all()
    assert counted.rows < 200


def test_a_nan_sample_finishes_and_does_not_change_the_others():
    x = start(3, 80.0)
    spoilt = x.clone()
    spoilt[1] = float("nan")
    got = adaptive(1e-2)(MIXTURE, spoilt, SIGMAS)
    assert got[1].isnan().all()
    torch.testing.assert_close(got[[0, 2]], adaptive(1e-2)(MIXTURE, x, SIGMAS)[[0, 2]])
