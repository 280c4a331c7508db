"""Laws that every registered schedule obeys; test_optimal.py repeats them for a fitted `optimal`."""

import pytest

from flowdiff import registry
from flowdiff.errors import ConfigurationError
from flowdiff.testing import schedules as laws

SCHEDULES = registry.names("schedule")


@pytest.mark.parametrize("num_steps", [1, 2, 3, 18, 60])
@pytest.mark.parametrize("name", SCHEDULES)
def test_grid_decreases_to_zero(name, num_steps):
    laws.grid_decreases_to_zero(registry.create("schedule", name), num_steps)


@pytest.mark.parametrize("num_steps", [1, 2, 10])
@pytest.mark.parametrize("name", SCHEDULES)
def test_grid_can_start_lower(name, num_steps):
    laws.grid_can_start_lower(registry.create("schedule", name), num_steps, sigma_max=1.7)


@pytest.mark.parametrize("share", [1.0, 0.3])
@pytest.mark.parametrize("name", SCHEDULES)
def test_start_at_the_bottom_is_one_step(name, share):
    laws.start_at_the_bottom_is_one_step(registry.create("schedule", name), share)


@pytest.mark.parametrize("name", SCHEDULES)
def test_refuses_invalid_steps_and_starts(name):
    laws.invalid_steps_and_starts_are_refused(registry.create("schedule", name))


@pytest.mark.parametrize("name", sorted({*SCHEDULES} - {"ddpm"}))  # its table sets the range
@pytest.mark.parametrize(("low", "high"), [(2.0, 1.0), (1.0, 1.0), (1.0, float("inf"))])
def test_refuses_an_empty_range(name, low, high):
    with pytest.raises(ConfigurationError, match=r"sigma_min=.* sigma_max="):
        registry.create("schedule", name, sigma_min=low, sigma_max=high)


@pytest.mark.parametrize("name", sorted({*SCHEDULES} - {"optimal"}))
def test_a_schedule_without_a_model_is_fitted_already(name):
    schedule = registry.create("schedule", name)
    assert schedule.fitted(lambda sigmas, n, callback: pytest.fail("nothing is to be measured")) is schedule
