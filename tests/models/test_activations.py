"""Both forms of every registered activation: an exact derivative, and a bijection with slopes in the stated range."""

import warnings

import pytest
import torch
from flow_cases import SMOOTH

from flowdiff import registry
from flowdiff.errors import InverseDidNotConverge
from flowdiff.testing import activations as laws


@pytest.mark.filterwarnings("ignore:activation=leakyrelu:UserWarning")
@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", registry.names("activation"))
def test_law(name, law):
    law(registry.create("activation", name))


@pytest.mark.parametrize("name", [*SMOOTH, "identity"])
def test_smooth_activations_have_a_continuous_second_derivative(name):
    laws.second_derivative_is_continuous(registry.create("activation", name))


def test_inverse_of_nan_is_an_error():
    softplus = registry.create("activation", "softplus")
    one = torch.ones((), dtype=torch.float64)
    with pytest.raises(InverseDidNotConverge, match="look for NaN"):
        softplus.inverse(torch.tensor([1.0, float("nan")], dtype=torch.float64), 0.5 * one, one)


def test_leakyrelu_warns_once(monkeypatch):
    leaky = registry.create("activation", "leakyrelu")
    monkeypatch.setattr(type(leaky), "_warned", False)
    x = torch.ones(2)
    with pytest.warns(UserWarning, match="score contribution is zero"):
        leaky.bijection(x, x * 0.5, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        leaky.bijection(x, x * 0.5, x)
