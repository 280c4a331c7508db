"""Learning-rate schedules: warm-up from near zero to the peak, then cosine to the final rate or constant."""

import math

import pytest
import torch

from flowdiff import registry
from flowdiff.errors import ConfigurationError


def rates(name, schedule, warmup=10, steps=100, **given):
    optimizer = registry.create("optimizer", name, lr=2.0, warmup_steps=warmup, lr_schedule=schedule, **given)
    torch_optimizer = optimizer.make([torch.nn.Parameter(torch.zeros(1))])
    scheduler = optimizer.scheduler(torch_optimizer, steps)
    seen = []
    for _ in range(steps):
        seen.append(torch_optimizer.param_groups[0]["lr"])
        torch_optimizer.step()
        scheduler.step()
    return seen, torch_optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("name", registry.names("optimizer"))
@pytest.mark.parametrize("end", [0.0, 0.2])
def test_cosine(name, end):
    seen, last = rates(name, "cosine", final_lr=end)
    assert seen[0] == pytest.approx(2.0 / 11)
    assert max(seen) == pytest.approx(2.0, rel=1e-3)
    assert seen.index(max(seen)) == 10
    assert seen[55] == pytest.approx((2.0 + end) / 2, rel=0.01)  # half-way down
    assert last == pytest.approx(end, abs=1e-9)
    assert min(seen[10:]) >= end


def test_a_final_rate_of_zero_changes_no_bit():
    seen, _ = rates("adamw", "cosine", final_lr=0.0)
    before = [min(1.0, (i + 1) / 11) * 0.5 * (1 + math.cos(math.pi * max(0.0, (i - 10) / 90))) for i in range(100)]
    assert seen == [2.0 * factor for factor in before]


def test_a_final_rate_has_to_be_one_that_the_cosine_falls_to():
    with pytest.raises(ConfigurationError, match=r"final_lr=3 is above optimizer.lr=2"):
        registry.create("optimizer", "adamw", lr=2.0, final_lr=3.0)
    with pytest.raises(ConfigurationError, match=r"set lr_schedule=cosine or final_lr=0"):
        registry.create("optimizer", "adam", lr_schedule="constant", final_lr=1e-4)


@pytest.mark.parametrize("name", registry.names("optimizer"))
def test_betas_and_weight_decay_are_settings(name):
    settings = {"betas": [0.8, 0.95], **({"weight_decay": 1e-4} if name == "adamw" else {})}
    made = registry.create("optimizer", name, **settings).make([torch.nn.Parameter(torch.zeros(1))])
    assert made.defaults["betas"] == (0.8, 0.95)
    assert made.defaults["weight_decay"] == settings.get("weight_decay", 0.0)


@pytest.mark.parametrize("name", registry.names("optimizer"))
def test_constant(name):
    seen, last = rates(name, "constant")
    assert seen[10:] == [2.0] * 90
    assert last == 2.0


def test_no_warmup():
    assert rates("adam", "constant", warmup=0)[0][0] == 2.0


@pytest.mark.parametrize("name", registry.names("optimizer"))
def test_inverse_square_root(name):
    seen, last = rates(name, "inverse_sqrt", warmup=0, t_ref=25)
    assert seen[:25] == [2.0] * 25
    assert seen[99] == pytest.approx(1.0)  # √(25/100)
    assert last == pytest.approx(2.0 * math.sqrt(25 / 101))
    assert rates(name, "inverse_sqrt", steps=200, t_ref=25)[0][:100] == rates(name, "inverse_sqrt", t_ref=25)[0]
    with pytest.raises(ConfigurationError, match="lr_schedule=inverse_sqrt is none"):
        registry.create("optimizer", name, lr_schedule="inverse_sqrt", final_lr=1e-4)
