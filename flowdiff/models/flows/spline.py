"""Spline flow: couplings whose transform is a monotone rational-quadratic spline, the identity outside [−B, B].

Knots (x_k, y_k), k = 0 … K, from (−B, −B) to (B, B), with slopes δ_k; in bin k, of width w, height h, mean slope
s = h/w, with ξ = (x − x_k)/w and q = s + (δ_k + δ_{k+1} − 2s)·ξ(1 − ξ):

    y = y_k + h·(s·ξ² + δ_k·ξ(1 − ξ))/q
    dy/dx = s²·(δ_{k+1}·ξ² + 2s·ξ(1 − ξ) + δ_k·(1 − ξ)²)/q²

The slopes agree at the knots and are 1 at ±B: the map is C¹. Its second derivative jumps at the knots, and so does the
score, by an amount that the density does not bound.
"""

from __future__ import annotations

import math
from typing import Annotated, NamedTuple, final

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from flowdiff.errors import ConfigurationError
from flowdiff.models.activations import Activation
from flowdiff.models.flows.coupling import Transform
from flowdiff.models.flows.multiscale import CouplingFlow, Form
from flowdiff.models.nn.inject import Inject
from flowdiff.models.nn.residual import NetSettings
from flowdiff.registry import register

Fraction = Annotated[float, Field(gt=0, lt=1)]


@register("flow", "spline")
class Spline(CouplingFlow):
    """Rational-quadratic spline couplings: over random halves of a vector, or multi-scale for images.

    z_moved = τ(x_moved), τ a monotone spline of K bins on [−B, B], its knots and slopes from a net of x_kept and (σ, c)

    The flow starts as the identity. It is only C¹ in x, whatever the activation: the score exists everywhere and *jumps
    at the knots*, and score losses do not see the jumps. For |x| > B every coupling is the identity, so the input
    should be whitened (deviation 1 per dimension). The halves are drawn from torch's global generator and kept in the
    state dict.

    Args:
        shape: shape of one sample, (D,) or (C, H, W).
        embed_dim: width of the embedding e = cond.vector (B, embed_dim).
        activation: nonlinearity of the nets.
        token_dim: width of cond.tokens (B, L, token_dim), read by inject=cross_attention; 0 without tokens.
        form: vector | image | auto; auto is image for images with even sides and more than 256 dimensions.
        n_flows: couplings, of each level for images, ≥ 1; two of them transform every dimension once.
        levels: scales of form=image, ≥ 1, each halves the sides; None: as many as the sides allow, at most 3.
        hidden: width of each coupling's net, ≥ 1.
        depth: residual blocks of each coupling's net, ≥ 1.
        bins: K of each spline, ≥ 1.
        bound: B > 0, in whitened units.
        min_bin: smallest width and height of a bin as a fraction of 2B, in (0, 1); bins·min_bin < 1.
        min_slope: smallest slope at a knot, in (0, 1); its reciprocal is the largest.
        prior_bound: bound > 0 of the log-scales of the split priors of form=image, in nats.
        inject: how (σ, c) enters the nets, film | concat | cross_attention.
        checkpoint: recompute each coupling in the backward pass instead of storing its activations.

    Raises:
        ConfigurationError: `bins` bins of min_bin do not fit into the interval.
        ConfigurationError: a vector has fewer than two dimensions, or the sides of an image cannot be halved.

    Source: Durkan, Bekasov, Murray, Papamakarios, Neural Spline Flows, 2019.
    """

    smooth = False  # not C²
    forward_differentiable = False  # torch cannot differentiate softmax forward and then backward

    def __init__(
        self,
        shape: tuple[int, ...],
        embed_dim: int,
        activation: Activation,
        token_dim: int = 0,
        *,
        form: Form,
        n_flows: PositiveInt,
        levels: PositiveInt | None,
        hidden: PositiveInt,
        depth: PositiveInt,
        bins: PositiveInt,
        bound: PositiveFloat,
        min_bin: Fraction,
        min_slope: Fraction,
        prior_bound: PositiveFloat,
        inject: Inject,
        checkpoint: bool,
    ):
        if bins * min_bin >= 1:
            raise ConfigurationError(
                f"flow=spline was given flow.bins={bins} bins of at least flow.min_bin={min_bin} of the interval each, "
                f"which does not fit: bins·min_bin must stay below 1, so take min_bin < {1 / bins:.3g}."
            )
        transform = RationalQuadratic(bins, bound, min_bin, min_slope)
        nets = NetSettings(hidden, depth, embed_dim, activation, inject, token_dim)
        super().__init__("spline", shape, form, n_flows, levels, transform, nets, prior_bound, checkpoint)


class Bin(NamedTuple):
    """The bin that each number falls into; every field has the shape of the numbers."""

    x0: Tensor  # left knot
    y0: Tensor
    w: Tensor  # width
    h: Tensor  # height
    d0: Tensor  # slope at the left knot
    d1: Tensor  # slope at the right knot

    def point(self, xi: Tensor) -> tuple[Tensor, Tensor]:
        """y and log dy/dx at ξ ∈ [0, 1]."""
        s, t = self.h / self.w, xi * (1 - xi)
        q = s * (1 - 2 * t) + (self.d0 + self.d1) * t
        y = self.y0 + self.h * (s * xi**2 + self.d0 * t) / q
        rise = self.d1 * xi**2 + 2 * s * t + self.d0 * (1 - xi) ** 2
        return y, 2 * (s / q).log() + rise.log()

    def position(self, y: Tensor) -> Tensor:
        """ξ ∈ [0, 1] of y."""
        # A quadratic equation: ξ = 2sη/(2sη + p + √(p² + r)) with η = (y − y_k)/h. Nothing under the root is negative,
        # and p + √(p² + r) is computed as r/(−p + √(p² + r)) if p < 0: no two nearly equal numbers are subtracted.
        s, eta = self.h / self.w, (y - self.y0) / self.h
        p = self.d0 * (1 - eta) - self.d1 * eta
        r = 4 * s**2 * eta * (1 - eta)
        total = torch.where(p < 0, -p, p) + torch.sqrt(p**2 + r)
        return 2 * s * eta / (2 * s * eta + torch.where(p < 0, r / total, total))


@final
class RationalQuadratic(Transform):
    """A monotone spline of K bins on [−B, B], the identity outside; C¹ in x, C^∞ in params unless x is a knot.

    params (widths, heights, log-slopes), K + K + K − 1 of them: the widths are 2B·(m + (1 − K·m)·softmax), m = min_bin,
    the heights likewise, and the inner slopes are e^{c·tanh(·/c)} ∈ (min_slope, 1/min_slope).

    Args:
        bins: K ≥ 1.
        bound: B > 0.
        min_bin: smallest width and height of a bin as a fraction of 2B, in (0, 1/K).
        min_slope: smallest slope at a knot, in (0, 1).
    """

    def __init__(self, bins: int, bound: float, min_bin: float, min_slope: float):
        self.num_params = 3 * bins - 1
        self.bins = bins
        self.bound = bound
        self.min_bin = min_bin
        self.log_slope_bound = -math.log(min_slope)

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        inside, u = self._inside(x)
        bin = self._bin(u, params, axis=0)
        y, log_slope = bin.point((u - bin.x0) / bin.w)
        return torch.where(inside, y, x), torch.where(inside, log_slope, torch.zeros_like(x))

    def inverse(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        inside, v = self._inside(y)
        bin = self._bin(v, params, axis=1)
        xi = bin.position(v)
        _, log_slope = bin.point(xi)
        return torch.where(inside, bin.x0 + bin.w * xi, y), torch.where(inside, -log_slope, torch.zeros_like(y))

    def knots(self, params: Tensor) -> Tensor:
        """x_k and y_k, (B, 2, K + 1, …), from params (B, 3K − 1, …); the ends are exactly ±B."""
        lengths = params[:, : 2 * self.bins].unflatten(1, (2, self.bins))
        share = self.min_bin + (1 - self.bins * self.min_bin) * torch.softmax(lengths, 2)
        inner = self.bound * (2 * share[:, :, :-1].cumsum(2) - 1)
        end = torch.full_like(share[:, :, :1], self.bound)
        return torch.cat([-end, inner, end], 2)

    def slopes(self, params: Tensor) -> Tensor:
        """δ_k, (B, K + 1, …), from params (B, 3K − 1, …)."""
        return self._slope(self._raw_slopes(params))

    def _inside(self, x: Tensor) -> tuple[Tensor, Tensor]:
        inside = x.abs() < self.bound
        return inside, torch.where(inside, x, torch.zeros_like(x))  # in the tails any point inside the interval will do

    def _bin(self, u: Tensor, params: Tensor, axis: int) -> Bin:
        """The bin of u (B, N, …), |u| < B, among the x_k (axis 0) or the y_k (axis 1)."""
        knots = self.knots(params)
        left = (u[:, None] >= knots[:, axis, 1:-1]).sum(1, keepdim=True)
        ends = torch.cat([left, left + 1], 1)  # (B, 2, N, …)
        (x0, x1), (y0, y1) = (along_axis.gather(1, ends).unbind(1) for along_axis in knots.unbind(1))
        d0, d1 = self._slope(self._raw_slopes(params).gather(1, ends)).unbind(1)
        return Bin(x0, y0, x1 - x0, y1 - y0, d0, d1)

    def _raw_slopes(self, params: Tensor) -> Tensor:
        inner = params[:, 2 * self.bins :]
        end = torch.zeros_like(params[:, :1])
        return torch.cat([end, inner, end], 1)

    def _slope(self, raw: Tensor) -> Tensor:
        return (self.log_slope_bound * torch.tanh(raw / self.log_slope_bound)).exp()
