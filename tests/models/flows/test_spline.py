"""The spline: the curve, its knots and tails, where it is only C¹, and rounding."""

import pytest
import torch
from small_models import normal
from torch.autograd import gradcheck, gradgradcheck

from flowdiff.models.flows.spline import RationalQuadratic

BOUND, MIN_BIN, MIN_SLOPE = 3.0, 0.02, 0.05


def make(bins: int = 5) -> RationalQuadratic:
    return RationalQuadratic(bins, BOUND, MIN_BIN, MIN_SLOPE)


def draw(*size: int, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    return scale * normal(size, seed=seed)[0]


def knots(spline: RationalQuadratic, params: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x_k, y_k and slopes, each (B, N, K + 1), from params (B, P, N)."""
    along_axes, slopes = spline.knots(params), spline.slopes(params)
    return along_axes[:, 0].movedim(1, -1), along_axes[:, 1].movedim(1, -1), slopes.movedim(1, -1)


@pytest.mark.parametrize("bins", [1, 2, 8])
@pytest.mark.parametrize("scale", [0.0, 1.0, 5.0])
def test_it_equals_another_implementation(bins, scale):
    zuko = pytest.importorskip("zuko")
    spline, x = make(bins), draw(50, 7, scale=2.0)
    params = draw(50, spline.num_params, 7, scale=scale, seed=1)
    raw = [torch.zeros(n, dtype=x.dtype) for n in (bins, bins, bins - 1)]
    other = zuko.transforms.MonotonicRQSTransform(*raw, bound=BOUND)
    other.horizontal, other.vertical, other.derivatives = knots(spline, params)
    # Rounding, 1e-16, times at most 1e6, the largest possible ratio of the slopes in a bin.
    close = {"rtol": 1e-9, "atol": 1e-9}
    for ours, theirs in ((spline.forward, other), (spline.inverse, other.inv)):
        torch.testing.assert_close(ours(x, params), tuple(theirs.call_and_ladj(x)), **close)
    assert (x.abs() > BOUND).any()
    assert (x.abs() < BOUND).any()


@pytest.mark.parametrize("scale", [1.0, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_bins_and_slopes_are_not_smaller_than_allowed(scale, dtype):
    spline = make()
    xs, ys, slopes = knots(spline, draw(50, spline.num_params, 4, scale=scale).to(dtype))
    slack = 1e-5  # rounding in float32 of numbers up to 3
    for along in (xs, ys):
        assert (along[..., 0] == -BOUND).all()
        assert (along[..., -1] == BOUND).all()
        assert (along.diff(dim=-1) > 2 * BOUND * MIN_BIN - slack).all()
    assert (slopes > MIN_SLOPE * (1 - slack)).all()
    assert (slopes < (1 + slack) / MIN_SLOPE).all()
    assert (slopes[..., [0, -1]] == 1).all()


def test_the_tails_are_the_identity():
    spline = make()
    x = torch.tensor([[-1e3, -BOUND, BOUND, 4.0, 1e3]], dtype=torch.float64, requires_grad=True)
    params = draw(1, spline.num_params, 5)
    for direction in (spline.forward, spline.inverse):
        y, log_slope = direction(x, params)
        assert torch.equal(y, x)
        assert torch.equal(log_slope, torch.zeros_like(x))
        (slope,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(slope, torch.ones_like(x))


def test_it_is_once_but_not_twice_differentiable_at_the_knots():
    """Value and slope agree on both sides of each knot, the ends included; the score, d log y′/dx, does not."""
    spline, params = make(), draw(1, 14, 1)
    xs = knots(spline, params)[0].flatten()  # (K + 1,)
    params = params.expand(1, -1, len(xs))
    sides = []
    for step in (-1e-9, 1e-9):
        x = (xs + step)[None].requires_grad_()
        y, log_slope = spline.forward(x, params)
        (score,) = torch.autograd.grad(log_slope.sum(), x)
        sides.append((y.detach(), log_slope.detach(), score))
    (y, log_slope, score), (other_y, other_log_slope, other_score) = sides
    torch.testing.assert_close(y, other_y, rtol=0, atol=1e-7)  # the step times slopes up to 20
    torch.testing.assert_close(log_slope, other_log_slope, rtol=0, atol=1e-6)
    assert ((score - other_score).abs() > 1e-2).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_values_at_and_next_to_the_knots_are_finite_and_inverted(dtype):
    """At each knot and next to it, with very uneven bins, derivatives are finite and the inverse recovers x."""
    spline = make()
    params = draw(200, spline.num_params, 1, scale=20.0).to(dtype)
    for direction, back, along in (
        (spline.forward, spline.inverse, knots(spline, params)[0]),
        (spline.inverse, spline.forward, knots(spline, params)[1]),
    ):
        at = along.flatten(1)
        x = torch.cat([at, at.nextafter(at - 1), at.nextafter(at + 1)], 1).requires_grad_()
        p = params.expand(-1, -1, x.shape[1]).clone().requires_grad_()
        y, log_slope = direction(x, p)
        first = torch.autograd.grad(y.sum() + log_slope.sum(), (x, p), create_graph=True)
        second = torch.autograd.grad(sum(g.sum() for g in first), (x, p))
        assert all(t.isfinite().all() for t in (y, log_slope, *first, *second))
        other_x, other_log_slope = back(y, p)
        # Near a knot a slope is at least 0.05 in one direction and at most 20 in the other.
        torch.testing.assert_close(other_x, x, rtol=0, atol=1e3 * torch.finfo(dtype).eps)
        # At the steep end of a flat bin the log-slope changes by about 1e4 per unit of x, which is known to 10 eps.
        torch.testing.assert_close(other_log_slope, -log_slope, rtol=0, atol=1e6 * torch.finfo(dtype).eps)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # raised by torch's forward mode
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_derivatives_between_the_knots(direction):
    """First, second and forward-mode derivatives in x and in the parameters."""
    spline = make(3)
    x, params = draw(2, 3).requires_grad_(), draw(2, spline.num_params, 3, seed=1).requires_grad_()
    function = getattr(spline, direction)
    assert gradcheck(function, (x, params), check_forward_ad=True)
    assert gradgradcheck(function, (x, params))
