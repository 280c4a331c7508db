"""Laws that every registered schedule obeys; test_optimal.py repeats them for a fitted `optimal`."""

import pytest
import torch

from flowdiff import registry
from flowdiff.errors import ConfigurationError

SCHEDULES = registry.names("schedule")


@pytest.mark.parametrize("num_steps", [1, 2, 3, 18, 60])
@pytest.mark.parametrize("name", SCHEDULES)
def test_grid_decreases_to_zero(name, num_steps):
    schedule = registry.create("schedule", name)
    sigmas = schedule(num_steps)
    assert sigmas.shape == (num_steps + 1,)
    assert sigmas.dtype == torch.float64
    assert sigmas[0].item() == schedule.sigma_max
    assert sigmas[-1].item() == 0
    assert (sigmas.diff() < 0).all()
    assert sigmas[-2].item() >= schedule.sigma_min * (1 - 1e-12)


@pytest.mark.parametrize("num_steps", [1, 2, 10])
@pytest.mark.parametrize("name", SCHEDULES)
def test_grid_can_start_lower(name, num_steps):
    schedule = registry.create("schedule", name)
    sigmas = schedule(num_steps, sigma_max=1.7)
    assert sigmas.shape == (num_steps + 1,)
    assert sigmas[0].item() == 1.7
    assert sigmas[-1].item() == 0
    assert (sigmas.diff() < 0).all()


@pytest.mark.parametrize("share", [1.0, 0.3])
@pytest.mark.parametrize("name", SCHEDULES)
def test_start_at_the_bottom_is_one_step(name, share):
    schedule = registry.create("schedule", name)
    start = share * schedule.sigma_min
    assert schedule(10, sigma_max=start).tolist() == [start, 0]


@pytest.mark.parametrize("name", SCHEDULES)
def test_refuses_invalid_steps_and_starts(name):
    schedule = registry.create("schedule", name)
    with pytest.raises(ConfigurationError, match="num_steps=0 "):
        schedule(0)
    for start in (0.0, -1.0, schedule.sigma_max * 1.01, float("nan")):
        with pytest.raises(ConfigurationError, match="a start at sigma="):
            schedule(5, sigma_max=start)


@pytest.mark.parametrize("name", sorted({*SCHEDULES} - {"ddpm"}))  # its table sets the range
@pytest.mark.parametrize(("low", "high"), [(2.0, 1.0), (1.0, 1.0), (1.0, float("inf"))])
def test_refuses_an_empty_range(name, low, high):
    with pytest.raises(ConfigurationError, match=r"sigma_min=.* sigma_max="):
        registry.create("schedule", name, sigma_min=low, sigma_max=high)


@pytest.mark.parametrize("name", sorted({*SCHEDULES} - {"optimal"}))
def test_a_schedule_without_a_model_is_fitted_already(name):
    schedule = registry.create("schedule", name)
    assert schedule.fitted(lambda sigmas, n, callback: pytest.fail("nothing is to be measured")) is schedule
