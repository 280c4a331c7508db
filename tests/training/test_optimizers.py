"""Learning-rate schedules: warm-up from near zero to the peak, then cosine to zero or constant."""

import pytest
import torch

from flowdiff import registry


def rates(name, schedule, warmup=10, steps=100):
    optimizer = registry.create("optimizer", name, lr=2.0, warmup_steps=warmup, lr_schedule=schedule)
    torch_optimizer = optimizer.make([torch.nn.Parameter(torch.zeros(1))])
    scheduler = optimizer.scheduler(torch_optimizer, steps)
    seen = []
    for _ in range(steps):
        seen.append(torch_optimizer.param_groups[0]["lr"])
        torch_optimizer.step()
        scheduler.step()
    return seen, torch_optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("name", registry.names("optimizer"))
def test_cosine(name):
    seen, last = rates(name, "cosine")
    assert seen[0] == pytest.approx(2.0 / 11)
    assert max(seen) == pytest.approx(2.0, rel=1e-3)
    assert seen.index(max(seen)) == 10
    assert seen[55] == pytest.approx(1.0, rel=0.01)  # half-way down
    assert last == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("name", registry.names("optimizer"))
def test_constant(name):
    seen, last = rates(name, "constant")
    assert seen[10:] == [2.0] * 90
    assert last == 2.0


def test_no_warmup():
    assert rates("adam", "constant", warmup=0)[0][0] == 2.0
