"""Points of samples: exact through a flow, and through the ODE up to an error that falls with its steps."""

import pytest
import torch
from small_models import flow_of, normal, score_flow_of

import flowdiff
from flowdiff.diffusion.inversion import ByDdim, ByFlow, inversion_of
from flowdiff.errors import ConfigurationError
from flowdiff.evaluation.image_start.points import between, changed, reconstruction_error
from flowdiff.models.conditioning import Conditioning
from flowdiff.registry import create
from flowdiff.testing import oracles
from flowdiff.testing.inputs import perturb
from flowdiff.testing.models import ScoreOf, model_of

SHAPE = (6,)


def flow():
    return perturb(score_flow_of(flow_of("realnvp", SHAPE, 8), SHAPE, cond_dim=3)).double().eval()


def test_a_flow_returns_what_it_encodes_and_changes_it_by_the_condition_alone():
    x, c, other = normal((4, *SHAPE), (4, 3), (4, 3))
    inversion = ByFlow(flow(), 0.05)
    cond, target = Conditioning(c), Conditioning(other)
    assert reconstruction_error(inversion, x, cond).max() < 1e-8
    there = changed(inversion, x, cond, target)
    assert (there - x).abs().max() > 1e-2
    torch.testing.assert_close(changed(inversion, there, target, cond), x, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(inversion.encode(there, target), inversion.encode(x, cond), rtol=1e-8, atol=1e-8)


def test_the_way_between_two_samples_begins_and_ends_with_them():
    x, c = normal((2, *SHAPE), (1, 3))
    inversion, cond = ByFlow(flow(), 0.05), Conditioning(c)
    way = between(inversion, x, cond[torch.zeros(2, dtype=torch.int64)], cond[torch.zeros(5, dtype=torch.int64)], 5)
    assert way.shape == (5, *SHAPE)
    torch.testing.assert_close(way[[0, -1]], x, rtol=1e-8, atol=1e-8)
    assert (way[2] - x.mean(0)).abs().max() > 1e-3  # no straight line in x


def test_the_error_of_ddim_inversion_falls_with_the_number_of_steps():
    """Euler's method has order 1: four times the steps leave a quarter of the error, here within a factor of 1.5."""
    data = oracles.Mixture(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), torch.tensor([0.3, 0.3]))
    x = torch.tensor([[1.2, 0.7], [-0.8, -1.1], [0.9, 1.4]], dtype=torch.float64)
    schedule = create("schedule", "karras")

    def error(steps: int) -> float:
        return float(reconstruction_error(ByDdim(data, schedule(steps + 1)[:-1]), x, None).mean())

    errors = [error(steps) for steps in (20, 80, 320)]
    assert errors[0] > errors[1] > errors[2] > 0
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.5)


def test_both_are_functions_of_the_api_and_what_does_not_fit_is_refused():
    data = oracles.Gaussian(torch.zeros(2), torch.eye(2))
    raw = model_of(ScoreOf(data.network), shape=(2,))
    x = torch.tensor([[0.5, -1.0], [1.0, 0.2]])
    there = flowdiff.change(raw, x, source=None, target=None, through="ddim", num_steps=100)
    torch.testing.assert_close(there, x, rtol=0.1, atol=0.1)
    assert flowdiff.between(raw, x[0], x[1], 3, through="ddim", num_steps=10).shape == (3, 2)
    with pytest.raises(ConfigurationError, match="set through=ddim"):
        inversion_of(raw, "z", 5)
