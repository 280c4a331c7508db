"""The masked autoregressive flows of the library zuko, for vectors (samples of other shapes are flattened).

    z_i = τ(x_i; h_i),   h_i = net_i(x_1 … x_{i−1}, e),   log|det ∂z/∂x| = Σ log τ′      e the embedding of (¼ ln σ, c)

What τ is gives a family its name. n_flows such maps follow one another, every second with the dimensions in reversed
order. The condition is zuko's context: it stands beside x at the input of the masked nets and is no dimension of x.

Left out of zuko: NICE and RealNVP are flow=realnvp, CNF is an ODE (its own family), NCSF lives on a torus. BPF jumps
by 1e-5 at the ends of its polynomials. GF's log-determinant is
−∞ a few deviations out, where its error functions saturate. SOSPF's polynomials overflow when composed. UNAF's integral
is a sum of 32 nodes, which need not increase with x and can be differentiated once only. The x/(1 + |x|/11) that zuko
puts between NAF's maps bounds z, so that a part of N(0, I) belongs to no x and p does not integrate to 1: here it is
left out.
"""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, final

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.distributions import Transform, constraints

from flowdiff.models.activations import Activation
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.flows.base import Flow
from flowdiff.models.flows.masked_walk import walk
from flowdiff.models.nn.inject import zero_init
from flowdiff.models.nn.recompute import call
from flowdiff.registry import register

Slope = Annotated[float, Field(gt=0, lt=1)]

GENTLE = 0.1  # by which a monotone net's weights of x are scaled down at the start, so that it is nearly linear
BRACKET = 1e4  # bisection looks for x within ± this; x is whitened, but far out a map may be flat


class MaskedFlow(Flow, ABC):
    """n_flows masked autoregressive transforms of zuko: x (B, *shape) → z like x, log-det (B,) in nats.

    univariate() makes what turns the parameters h_i, of the given shapes, into zuko's transform τ. hidden, depth: width
    and number of the masked nets' hidden layers, whose last layer is zero at the start. passes: None, every dimension
    sees all before it; 2, one half sees the other (a coupling); in general that many groups, each sees those before
    it. The inverse takes as many passes through the nets. random_order: the dimensions in an order drawn from torch's
    global generator for each map and kept in the state dict, instead of ascending and descending in turn. checkpoint:
    each map is computed again in the backward pass of data → base (flowdiff/models/nn/recompute.py).
    """

    inverse_by = "dimension by dimension"
    elementwise: bool = True  # whether univariate() can make τ for some of the dimensions alone

    def __init__(
        self,
        shape: tuple[int, ...],
        embed_dim: int,
        activation: Activation,
        univariate: Callable[[], Callable[..., Any]],
        shapes: Sequence[tuple[int, ...]],
        n_flows: int,
        hidden: int,
        depth: int,
        passes: int | None,
        random_order: bool,
        checkpoint: bool,
    ):
        super().__init__()
        from zuko.flows import MaskedAutoregressiveTransform
        from zuko.lazy import LazyComposedTransform

        dim = math.prod(shape)
        ascending = torch.arange(dim)
        transforms = [
            MaskedAutoregressiveTransform(
                features=dim,
                context=embed_dim,
                passes=passes,
                order=torch.randperm(dim) if random_order else (ascending, ascending.flip(0))[i % 2],
                univariate=univariate(),
                shapes=shapes,
                hidden_features=[hidden] * depth,
                activation=partial(Nonlinearity, activation),
            )
            for i in range(n_flows)
        ]
        for transform in transforms:
            zero_init(transform.hyper[-1])
            for layer in transform.hyper:
                if hasattr(layer, "mask"):
                    layer.mask = layer.mask.to(layer.weight)  # so that mask·weight converts nothing
        self.dim = dim
        self.checkpoint = checkpoint
        self.transform = LazyComposedTransform(*transforms)  # (context) → torch's Transform

    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        if not self.checkpoint:  # all at once, which is faster where the nets are small
            return self._through(self.transform, x, cond.vector)
        z, logdet = x, x.new_zeros(len(x))
        for transform in self.transform.transforms:
            z, term = call(self._through, transform, z, cond.vector, checkpoint=True)
            logdet = logdet + term
        return z, logdet

    def _through(self, transform: nn.Module, x: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        return self._both(transform(e), x)

    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled() or self.dim == 1 or not self.elementwise:
            return self._both(self.transform(cond.vector).inv, z)
        x, logdet = z.flatten(1), z.new_zeros(len(z))
        with torch.autocast(z.device.type, enabled=False):
            for transform in reversed(self.transform.transforms):
                x, term = walk(transform, x, cond.vector)
                logdet = logdet + term
        return x.reshape(z.shape), logdet

    def _both(self, transform: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):  # which rounds x where it enters the nets, and all after it
            z, logdet = transform.call_and_ladj(x.flatten(1))
        if not torch.is_grad_enabled():  # zuko's monotone transforms leave a graph behind
            z, logdet = z.detach(), logdet.detach()
        return z.view_as(x), logdet


@final
class Nonlinearity(nn.Module):
    """An activation as a layer, of which zuko's nets are built."""

    def __init__(self, activation: Activation):
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation.plain(x)


@register("flow", "maf")
@final
class MAF(MaskedFlow):
    """τ(x) = x·e^s + t, s = a/(1 + |a/c|), c = −ln min_slope, (a, t) from a masked net; with passes=2 a RealNVP.

    hidden, depth, passes, random_order, checkpoint: see MaskedFlow; min_slope: e^s lies between it and its reciprocal.
    The inverse is exact. The identity at the start. The score is continuous, its derivative jumps where a = 0.
    Source: Papamakarios et al., "Masked Autoregressive Flow for Density Estimation", 2017.
    """

    smooth = False

    def __init__(
        self,
        shape: tuple[int, ...],
        embed_dim: int,
        activation: Activation,
        *,
        n_flows: PositiveInt,
        hidden: PositiveInt,
        depth: PositiveInt,
        passes: PositiveInt | None,
        random_order: bool,
        min_slope: Slope,
        checkpoint: bool,
    ):
        from zuko.transforms import MonotonicAffineTransform

        affine = partial(MonotonicAffineTransform, slope=min_slope)
        nets = (n_flows, hidden, depth, passes, random_order, checkpoint)
        super().__init__(shape, embed_dim, activation, lambda: affine, [(), ()], *nets)


@register("flow", "nsf")
@final
class NSF(MaskedFlow):
    """τ a monotone rational-quadratic spline of `bins` pieces on [−5, 5] and the identity outside.

    hidden, depth, passes, random_order, checkpoint: see MaskedFlow; min_slope: the slopes at the knots lie between it
    and its reciprocal. The inverse is exact. The identity at the start. τ is C¹: the score jumps at the knots and at
    ±5.
    Source: Durkan et al., "Neural Spline Flows", 2019.
    """

    smooth = False
    forward_differentiable = False

    def __init__(
        self,
        shape: tuple[int, ...],
        embed_dim: int,
        activation: Activation,
        *,
        n_flows: PositiveInt,
        hidden: PositiveInt,
        depth: PositiveInt,
        passes: PositiveInt | None,
        random_order: bool,
        bins: Annotated[int, Field(ge=2)],
        min_slope: Slope,
        checkpoint: bool,
    ):
        from zuko.transforms import MonotonicRQSTransform

        spline = partial(MonotonicRQSTransform, slope=min_slope)
        nets = (n_flows, hidden, depth, passes, random_order, checkpoint)
        super().__init__(shape, embed_dim, activation, lambda: spline, [(bins,), (bins,), (bins - 1,)], *nets)


@register("flow", "naf")
@final
class NAF(MaskedFlow):
    """τ a net with positive weights, one per dimension, monotone in x_i; its other inputs h_i are `signal` numbers.

    hidden, depth, passes, random_order, checkpoint: see MaskedFlow. monotone_hidden: width of τ's two hidden layers,
    ELUs whatever `activation` is: the score jumps at their kinks. The identity at the start but for 20 % at |x| = 5.
    The inverse is found by bisection and Newton's method within |x| < 10,000, and can be differentiated once.
    Source: Huang et al., "Neural Autoregressive Flows", 2018.
    """

    smooth = False
    identity_at_start = False
    elementwise = False
    inverse_by = "dimension by dimension, each by bisection and Newton's method"

    def __init__(
        self,
        shape: tuple[int, ...],
        embed_dim: int,
        activation: Activation,
        *,
        n_flows: PositiveInt,
        hidden: PositiveInt,
        depth: PositiveInt,
        passes: PositiveInt | None,
        random_order: bool,
        signal: PositiveInt,
        monotone_hidden: PositiveInt,
        checkpoint: bool,
    ):
        dim = math.prod(shape)
        nets = (n_flows, hidden, depth, passes, random_order, checkpoint)
        super().__init__(
            shape, embed_dim, activation, lambda: PositiveNets(dim, signal, monotone_hidden), [(signal,)], *nets
        )


@final
class PositiveNets(nn.Module):
    """h (…, D, signal) → τ, by zuko's monotone nets, one per dimension, stretched to τ(±1) = ±1 for h = 0."""

    def __init__(self, dim: int, signal: int, hidden: int):
        super().__init__()
        from zuko.flows.neural import MNN

        self.make = MNN(signal=signal, stack=dim, hidden_features=[hidden] * 2)
        first, last = self.make.network[0], self.make.network[-1]
        with torch.no_grad():
            first.weight[..., 0] *= GENTLE  # x's own weights
            low, high = (self.make.f(torch.zeros(dim, signal), torch.full((dim,), end)) for end in (-1.0, 1.0))
            stretch = 2 / (high - low)  # (D,)
            last.weight *= stretch[:, None, None]
            last.bias.copy_((last.bias - ((low + high) / 2)[:, None]) * stretch[:, None])

    def forward(self, h: Tensor) -> Transform:
        transform = self.make(h)
        transform.bound = BRACKET
        return Refined(transform)


@final
class Refined(Transform):
    """An increasing τ whose inverse zuko finds by bisection to 1e-6, taken on to rounding by Newton's method."""

    domain = codomain = constraints.real
    bijective = True

    def __init__(self, transform: Transform):
        super().__init__()
        self.transform = transform

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.transform.call_and_ladj(x)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.transform.log_abs_det_jacobian(x, y)

    def _call(self, x: Tensor) -> Tensor:
        return self.transform(x)

    def _inverse(self, y: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.transform.inv(y)
            for _ in range(2):
                x = self._step(x, y)
        return self._step(x.detach(), y)  # carries the implicit function's gradient

    def _step(self, x: Tensor, y: Tensor) -> Tensor:
        value, log_slope = self.call_and_ladj(x)
        return x - (value - y) * torch.exp(-log_slope.detach())
