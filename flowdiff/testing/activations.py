"""The laws of an activation: an exact derivative, and a bijection with slopes in the stated range."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flowdiff.models.activations import MAX_STRENGTH, MIN_SLOPE, Activation
from flowdiff.testing.compare import require, require_at_most, require_close, require_finite

GRID = torch.cat([torch.linspace(-1e3, 1e3, 2001), torch.linspace(-5, 5, 2001)]).double() + 1e-3  # without 0, the kink


def check_activation(activation: Activation, *, smooth: bool = True) -> None:
    """Hold an activation to every law of an activation.

    `slope` is the derivative of `plain`; `slope_range` holds and is tight; the bijection has slopes within its bounds,
    an exact log-derivative, an inverse, and is the identity at strength 0; derivatives are finite for large x.

    Args:
        activation: the activation.
        smooth: whether it is C², as the score of a flow needs it, so that act″ must not jump; False leaves that out.

    Raises:
        AssertionError: the first law that is broken, by how much and where.
    """
    for law in LAWS:
        law(activation)
    if smooth:
        second_derivative_is_continuous(activation)


def strengths(x: Tensor) -> tuple[Tensor, Tensor]:
    """All pairs of 5 strengths and 3 sharpnesses, (15, 1) each, to be broadcast against x (N,)."""
    w = torch.tensor([-1.0, -0.5, 0.0, 0.3, 1.0], dtype=x.dtype).mul(MAX_STRENGTH).repeat_interleave(3)[:, None]
    k = torch.tensor([0.14, 1.0, 7.4], dtype=x.dtype).repeat(5)[:, None]
    return w, k


def slope_is_the_derivative_of_plain(activation: Activation) -> None:
    """`slope` = d plain/dx."""
    slope = _derivative(activation.plain, GRID)
    require_close(activation.slope(GRID), slope, "slope is the derivative of plain", rtol=1e-5, atol=1e-12)


def derivatives_are_finite_for_large_x(activation: Activation) -> None:
    """First and second derivatives of `plain` and of the bijection's log-slope are finite for |x| up to 1e4.

    Integers are included: torch.logaddexp(x, 0) has a NaN second derivative at exactly −100 and −1000.
    """
    for dtype in (torch.float32, torch.float64):
        half = torch.full((), 0.5, dtype=dtype)
        points = [-1e4, -1e3, -100, -88, -20, 20, 88, 100, 1e3, 1e4]
        x = torch.tensor(points, dtype=dtype, requires_grad=True)
        for name, y in (("plain", activation.plain(x)), ("log-slope", activation.bijection(x, half, 2 * half)[1])):
            law = f"{name} and its derivatives are finite for |x| up to 1e4 in {dtype}"
            require_finite(y, law)
            if y.requires_grad:  # the log-slope of a straight line does not depend on x
                (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
                require_finite(first, f"{law} (first derivative)")
                if first.requires_grad:
                    require_finite(torch.autograd.grad(first.sum(), x)[0], f"{law} (second derivative)")


def slope_range_is_tight_and_holds(activation: Activation) -> None:
    """`slope_range` = (inf act′, sup act′)."""
    m, M = activation.slope_range
    slope = activation.slope(GRID)
    low, high = float(slope.min()), float(slope.max())
    found = f"on a grid the slopes reach from {low:.6g} to {high:.6g}, and slope_range is ({m:.6g}, {M:.6g})"
    require(low >= m - 1e-12 and high <= M + 1e-12, "slopes are in slope_range", found)
    # The range is tight if a fine grid reaches both ends; otherwise the bend would not use all of [−1, 1].
    require(low - m < 1e-3 and M - high < 1e-3, "slope_range is tight", found)


def bijection_slopes_stay_within_the_bounds(activation: Activation) -> None:
    """The slopes of the bijection are in [0.05, 1.95]."""
    w, k = strengths(GRID)
    slope = activation.bijection(GRID, w, k)[1].exp()
    require_at_most(MIN_SLOPE - slope, 1e-9, f"slopes of the bijection are at least {MIN_SLOPE}")
    require_at_most(slope - (2 - MIN_SLOPE), 1e-9, f"slopes of the bijection are at most {2 - MIN_SLOPE}")


def log_slope_is_exact(activation: Activation) -> None:
    """The bijection's log-slope is the log of its derivative."""
    w, k = strengths(GRID)
    slope = _derivative(lambda x: activation.bijection(x, w, k)[0], GRID.expand(len(w), -1))
    found = activation.bijection(GRID, w, k)[1].expand_as(slope)
    # Measured error 4e-11: cancellation in 2·act(kx) − kx at k·x = 7400.
    require_close(found, slope.log(), "the log-slope is log dy/dx", rtol=1e-5, atol=1e-9)


def zero_strength_is_the_identity(activation: Activation) -> None:
    """Strength 0 changes nothing, and every strength maps 0 to 0."""
    one = torch.ones((), dtype=torch.float64)
    y, log_slope = activation.bijection(GRID, 0 * one, one)
    require_close(y, GRID, "strength 0 is the identity")
    require(not log_slope.any(), "strength 0 is the identity", f"the log-slope is {float(log_slope.abs().max()):.2g}")
    origin = torch.zeros(1, dtype=torch.float64)
    require_at_most(activation.bijection(origin, 0.9 * one, 2 * one)[0].abs(), 1e-15, "0 is mapped to 0")


def round_trip(activation: Activation) -> None:
    """`inverse` inverts the bijection, and the log-slopes of both directions cancel."""
    # Slopes down to 0.05 magnify the rounding of y (eps·|y|) twentyfold, and eps is 1.2e-7 in float32.
    for dtype, tolerance, log_tolerance in ((torch.float64, 1e-12, 1e-8), (torch.float32, 2e-5, 5e-3)):
        x = GRID.to(dtype)
        w, k = strengths(x)
        y, log_slope = activation.bijection(x, w, k)
        back, log_slope_back = activation.inverse(y, w, k)
        law = f"inverse(bijection(x)) = x in {dtype}"
        require_at_most((back - x).abs() / (1 + x.abs()), tolerance, f"{law}: the relative error is rounding")
        require_at_most((log_slope + log_slope_back).abs(), log_tolerance, f"log-slopes cancel in {dtype}: their sum")


def inverse_is_differentiable(activation: Activation) -> None:
    """Autograd's derivatives of the inverse in y, strength and sharpness agree with finite differences."""
    y = (torch.linspace(-2, 2, 7, dtype=torch.float64) + 0.013).requires_grad_()
    w, k = (torch.full_like(y, value).requires_grad_() for value in (0.7, 1.3))
    try:
        torch.autograd.gradcheck(lambda *a: activation.inverse(*a)[0], (y, w, k), atol=1e-6)
    except RuntimeError as error:
        require(False, "the inverse is differentiable", " ".join(str(error).split()))


def second_derivative_is_continuous(activation: Activation) -> None:
    """act is C²: neither act′ nor act″ jumps between neighbours of a fine grid; |act″| and |act‴| are below 10."""
    x = torch.linspace(-8, 8, 16_001, dtype=torch.float64)  # 0, where kinks are, is a point of it
    slope = activation.slope(x)
    for name, values in (("act′", slope), ("act″", _derivative(activation.slope, x))):
        require_at_most(values.diff().abs(), 10 * 1e-3, f"{name} is continuous: its step on a grid of spacing 0.001")


def _derivative(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.clone().requires_grad_(True)
    y = f(x)
    return torch.autograd.grad(y.sum(), x)[0] if y.requires_grad else torch.zeros_like(x)


LAWS: tuple[Callable[[Activation], None], ...] = (
    slope_is_the_derivative_of_plain,
    derivatives_are_finite_for_large_x,
    slope_range_is_tight_and_holds,
    bijection_slopes_stay_within_the_bounds,
    log_slope_is_exact,
    zero_strength_is_the_identity,
    round_trip,
    inverse_is_differentiable,
)
