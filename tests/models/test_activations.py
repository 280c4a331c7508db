"""Both forms of every registered activation: an exact derivative, and a bijection with slopes in the stated range."""

import warnings

import pytest
import torch

from flowdiff import registry
from flowdiff.errors import InverseDidNotConverge
from flowdiff.models.activations import MAX_STRENGTH, MIN_SLOPE

NAMES = registry.names("activation")
GRID = torch.cat([torch.linspace(-1e3, 1e3, 2001), torch.linspace(-5, 5, 2001)]).double() + 1e-3  # 0, the kink, is out


@pytest.fixture(params=NAMES)
def activation(request):
    return registry.create("activation", request.param)


@pytest.fixture(autouse=True)
def _leakyrelu_may_warn():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "activation=leakyrelu")
        yield


def derivative(f, x):
    x = x.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(f(x).sum(), x)
    return slope


def strengths(x):
    """All pairs of 5 strengths and 3 sharpnesses, (15, 1) each, to be broadcast against x (N,)."""
    w = torch.tensor([-1.0, -0.5, 0.0, 0.3, 1.0], dtype=x.dtype).mul(MAX_STRENGTH).repeat_interleave(3)[:, None]
    k = torch.tensor([0.14, 1.0, 7.4], dtype=x.dtype).repeat(5)[:, None]
    return w, k


def test_slope_is_the_derivative_of_plain(activation):
    assert torch.allclose(activation.slope(GRID), derivative(activation.plain, GRID), atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_derivatives_of_plain_and_of_the_bijection_are_finite_for_large_x(activation, dtype):
    # Integers are included: torch.logaddexp(x, 0) has a NaN second derivative at exactly −100 and −1000.
    x = torch.tensor([-1e4, -1e3, -100, -88, -20, 20, 88, 100, 1e3, 1e4], dtype=dtype, requires_grad=True)
    half = torch.full((), 0.5, dtype=dtype)
    for f in (activation.plain, lambda x: activation.bijection(x, half, 2 * half)[1]):
        y = f(x)
        if y.requires_grad:  # the log-slope of a straight line does not depend on x
            (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
            assert y.isfinite().all()
            assert first.isfinite().all()
            if first.requires_grad:
                assert torch.autograd.grad(first.sum(), x)[0].isfinite().all()


def test_slope_range_is_tight_and_holds(activation):
    m, M = activation.slope_range
    slope = activation.slope(GRID)
    assert slope.min() >= m - 1e-12
    assert slope.max() <= M + 1e-12
    # The range is tight if a fine grid reaches both ends; otherwise the bend would not use all of [−1, 1].
    assert slope.min() - m < 1e-3
    assert M - slope.max() < 1e-3


def test_bijection_slopes_stay_between_the_documented_bounds(activation):
    w, k = strengths(GRID)
    _, log_slope = activation.bijection(GRID, w, k)
    assert log_slope.exp().min() >= MIN_SLOPE - 1e-9
    assert log_slope.exp().max() <= 2 - MIN_SLOPE + 1e-9


def test_log_slope_is_the_autograd_derivative(activation):
    w, k = strengths(GRID)
    slope = derivative(lambda x: activation.bijection(x, w, k)[0], GRID.expand(len(w), -1))
    # Measured error 4e-11: cancellation in 2·act(kx) − kx at k·x = 7400.
    assert torch.allclose(activation.bijection(GRID, w, k)[1], slope.log(), atol=1e-9)


def test_zero_strength_is_the_identity_and_zero_is_mapped_to_zero(activation):
    one = torch.ones((), dtype=torch.float64)
    y, log_slope = activation.bijection(GRID, 0 * one, one)
    assert torch.equal(y, GRID)
    assert not log_slope.any()
    origin = torch.zeros(1, dtype=torch.float64)
    assert activation.bijection(origin, 0.9 * one, 2 * one)[0].abs() < 1e-15


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_round_trip(activation, dtype, tolerance):
    # Slopes down to 0.05 magnify the rounding of y (eps·|y|) twentyfold, and eps is 1.2e-7 in float32.
    x = GRID.to(dtype)
    w, k = strengths(x)
    y, log_slope = activation.bijection(x, w, k)
    back, log_slope_back = activation.inverse(y, w, k)
    assert ((back - x).abs() / (1 + x.abs())).max() < tolerance
    assert (log_slope + log_slope_back).abs().max() < (1e-8 if dtype is torch.float64 else 5e-3)


def test_inverse_is_differentiable(activation):
    y = torch.linspace(-2, 2, 7, dtype=torch.float64) + 0.013
    w = torch.full_like(y, 0.7).requires_grad_(True)
    k = torch.full_like(y, 1.3).requires_grad_(True)
    y.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda *a: activation.inverse(*a)[0], (y, w, k), atol=1e-6)


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
