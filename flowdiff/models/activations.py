"""Activations, each in two forms: a nonlinearity for nets, and a bijection of ℝ built from it.

None of softplus, tanh, elu, swish is a bijection of ℝ. With m = inf act′ and M = sup act′, the *bend*

    r(u) = [2·(act(u) − act(0)) − (m + M)·u] / (M − m),        r(0) = 0,  r′(u) ∈ [−1, 1]

is act without its mean slope. For a strength |w| ≤ 1 − min_slope and a sharpness k > 0,

    y = x + w·r(k·x)/k,        dy/dx = 1 + w·r′(k·x) ∈ [min_slope, 2 − min_slope]

is as smooth as act, increasing and onto ℝ; w = 0 is the identity. It equals y = a·x + b·act(kx) + const with
b = 2w/(k(M − m)).
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat
from torch import Tensor

from flowdiff.errors import InverseDidNotConverge
from flowdiff.registry import register

MIN_SLOPE = 0.05
MAX_STRENGTH = 1.0 - MIN_SLOPE  # |w| ≤ MAX_STRENGTH keeps every slope in [0.05, 1.95]


class Activation(ABC):
    """A scalar nonlinearity act, with its derivative and the range of that derivative.

    A subclass sets `slope_range` = (inf act′, sup act′) and implements `plain` and `slope`; the bijection and its
    inverse follow.
    """

    slope_range: tuple[float, float]  # (m, M)
    smooth: bool = True  # whether act is C²; if False the second derivatives of log p jump

    @abstractmethod
    def plain(self, x: Tensor) -> Tensor:
        """act(x), elementwise: the form used inside nets."""

    @abstractmethod
    def slope(self, x: Tensor) -> Tensor:
        """act′(x), elementwise."""

    def bijection(self, x: Tensor, strength: Tensor, sharpness: Tensor) -> tuple[Tensor, Tensor]:
        """y = x + w·r(kx)/k and log dy/dx, elementwise.

        Args:
            x: any shape; the three arguments are broadcast together.
            strength: w ∈ [−0.95, 0.95]; then the slopes lie in [0.05, 1.95].
            sharpness: k > 0.
        """
        u = sharpness * x
        return x + strength * self._bend(u) / sharpness, torch.log1p(strength * self._bend_slope(u))

    def inverse(self, y: Tensor, strength: Tensor, sharpness: Tensor) -> tuple[Tensor, Tensor]:
        """x with bijection(x) = y, and log dx/dy, by Newton's method inside a bracket; differentiable.

        Raises:
            InverseDidNotConverge: |bijection(x) − y| is above 1e-6·(1 + |y|) after 100 steps.
        """
        with torch.no_grad():
            root = self._root(y, strength, sharpness)
        # One Newton step from the root, with the slope held fixed, carries the implicit function's gradient.
        value, log_slope = self.bijection(root, strength, sharpness)
        x = root - (value - y) * torch.exp(-log_slope.detach())
        return x, -torch.log1p(strength * self._bend_slope(sharpness * x))

    def _root(self, y: Tensor, strength: Tensor, sharpness: Tensor) -> Tensor:
        # The slope of the bijection is in [0.05, 1.95] and 0 ↦ 0, so the root lies between y/1.95 and y/0.05.
        ends = torch.stack([y / (2 - MIN_SLOPE), y / MIN_SLOPE])
        low, high = ends.amin(0), ends.amax(0)
        x = y.clone()
        eps = 8 * torch.finfo(y.dtype).eps
        for _ in range(100):
            value, log_slope = self.bijection(x, strength, sharpness)
            error = value - y
            if (error.abs() <= eps * (1 + y.abs() + x.abs())).all():
                return x
            low, high = torch.where(error < 0, x, low), torch.where(error > 0, x, high)
            step = x - error * torch.exp(-log_slope)
            x = torch.where((step > low) & (step < high), step, (low + high) / 2)
        error = (self.bijection(x, strength, sharpness)[0] - y).abs() / (1 + y.abs())
        if not bool((error <= 1e-6).all()):
            raise InverseDidNotConverge(
                f"the inverse of the {type(self).__name__} bijection has an error of {float(error.max()):.1e} after "
                "100 Newton steps, and 1e-6 is allowed: look for NaN or Inf in its input."
            )
        return x

    def _bend(self, u: Tensor) -> Tensor:
        m, M = self.slope_range
        at_zero = self.plain(u.new_zeros(()))
        return (2 * (self.plain(u) - at_zero) - (m + M) * u) / (M - m)

    def _bend_slope(self, u: Tensor) -> Tensor:
        m, M = self.slope_range
        return (2 * self.slope(u) - (m + M)) / (M - m)


@register("activation", "softplus")
class Softplus(Activation):
    """Softplus, C^∞, with slopes in (0, 1).

    act(x) = ln(1 + e^{βx})/β

    Args:
        beta: sharpness β > 0 of the bend at 0.

    Source: Dugas, Bengio, Bélisle, Nadeau, Garcia, Incorporating second-order functional knowledge for better option
    pricing, 2001.
    """

    slope_range = (0.0, 1.0)

    def __init__(self, *, beta: PositiveFloat):
        self.beta = beta

    def plain(self, x: Tensor) -> Tensor:
        # This form is exact for every x, derivatives included: F.softplus switches to x above a threshold, which leaves
        # a kink, and the second derivative of torch.logaddexp is 0·∞ at exactly x = −100 in float32.
        return -F.logsigmoid(-self.beta * x) / self.beta

    def slope(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x * self.beta)


@register("activation", "leakyrelu")
class LeakyReLU(Activation):
    """Leaky ReLU, piecewise linear, for the ablation.

    act(x) = max(x, αx)

    The bijection is piecewise linear too: log dy/dx is piecewise constant, so it adds nothing to the score except at
    the kink, where the score does not exist. The first call of the bijection warns about this.

    Args:
        negative_slope: slope α ∈ (0, 1) for x < 0.

    Source: Maas, Hannun, Ng, Rectifier nonlinearities improve neural network acoustic models, 2013.
    """

    smooth = False
    _warned = False

    def __init__(self, *, negative_slope: Annotated[float, Field(gt=0, lt=1)]):
        self.negative_slope = negative_slope
        self.slope_range = (negative_slope, 1.0)

    def plain(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, self.negative_slope)

    def slope(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x.new_ones(()), x.new_full((), self.negative_slope))

    def bijection(self, x: Tensor, strength: Tensor, sharpness: Tensor) -> tuple[Tensor, Tensor]:
        if not LeakyReLU._warned:
            LeakyReLU._warned = True
            warnings.warn(
                "activation=leakyrelu as a flow layer has a piecewise constant log-slope: its score contribution is "
                "zero almost everywhere.",
                stacklevel=2,
            )
        return super().bijection(x, strength, sharpness)

    def _root(self, y: Tensor, strength: Tensor, sharpness: Tensor) -> Tensor:
        return y / (1 + strength * torch.where(y > 0, 1.0, -1.0).to(y.dtype))  # r(u) = |u|: two straight lines


@register("activation", "elu")
class ELU(Activation):
    """Exponential linear unit, C¹, with slopes in (0, 1].

    act(x) = x for x > 0, e^x − 1 for x ≤ 0

    act″ jumps at 0, so the score of a flow that uses the bijection jumps there.

    Source: Clevert, Unterthiner, Hochreiter, Fast and accurate deep network learning by exponential linear units, 2016.
    """

    smooth = False
    slope_range = (0.0, 1.0)

    def plain(self, x: Tensor) -> Tensor:
        return F.elu(x)

    def slope(self, x: Tensor) -> Tensor:
        return torch.exp(-F.relu(-x))


@register("activation", "tanh")
class Tanh(Activation):
    """Hyperbolic tangent, C^∞, with slopes in (0, 1].

    act(x) = tanh x
    """

    slope_range = (0.0, 1.0)

    def plain(self, x: Tensor) -> Tensor:
        return torch.tanh(x)

    def slope(self, x: Tensor) -> Tensor:
        return 1 - torch.tanh(x) ** 2


@register("activation", "swish")
class Swish(Activation):
    """Swish, also called SiLU, C^∞ and not monotone, with slopes in [−0.0998, 1.0998].

    act(x) = x·sigmoid(x)

    Source: Ramachandran, Zoph, Le, Searching for activation functions, 2017.
    """

    # The slope sigmoid(x)·(1 + x·(1 − sigmoid(x))) is extreme at x = ±2.39936, where x·tanh(x/2) = 2.
    slope_range = (-0.09983932012886677, 1.0998393201288668)

    def plain(self, x: Tensor) -> Tensor:
        return F.silu(x)

    def slope(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(x)
        return gate * (1 + x * (1 - gate))


@register("activation", "identity")
class Identity(Activation):
    """No nonlinearity: the bijection is the identity, so flow=linear_activation is affine, a Gaussian at every (σ, c).

    act(x) = x
    """

    slope_range = (1.0, 1.0)

    def plain(self, x: Tensor) -> Tensor:
        return x

    def slope(self, x: Tensor) -> Tensor:
        return torch.ones_like(x)

    def bijection(self, x: Tensor, strength: Tensor, sharpness: Tensor) -> tuple[Tensor, Tensor]:
        return x, torch.zeros_like(x)

    def inverse(self, y: Tensor, strength: Tensor, sharpness: Tensor) -> tuple[Tensor, Tensor]:
        return y, torch.zeros_like(y)
