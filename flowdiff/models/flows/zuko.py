"""The masked autoregressive flows of the library zuko, for vectors (samples of other shapes are flattened).

    z_i = τ(x_i; h_i),   h_i = net_i(x_1 … x_{i−1}, e),   log|det ∂z/∂x| = Σ log τ′      e the embedding of (¼ ln σ, c)

τ gives a family its name. n_flows such maps follow one another, every second one with the dimensions in reversed order.
The condition is zuko's context: it enters the masked nets next to x and is not a dimension of x. The gate multiplies
h_i, and blends the monotone nets of NAF, which are no identity for h = 0, with the identity.

Families of zuko that are not offered: NICE and RealNVP are flow=realnvp, CNF is flow=ffjord, NCSF is a flow on a
torus. BPF jumps by 1e-5 at the ends of its polynomials. The log-determinant of GF is −∞ a few deviations from 0, where
its error functions saturate. The polynomials of SOSPF overflow when composed. The integral of UNAF is a sum of 32
nodes, which need not increase with x and can be differentiated only once. Between the maps of NAF zuko puts
x/(1 + |x|/11), which bounds z, so that a part of N(0, I) is the image of no x and p does not integrate to 1: here it is
left out.
"""

from __future__ import annotations

import copy
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
from flowdiff.models.flows.base import Flow, embedding
from flowdiff.models.flows.gate import gated
from flowdiff.models.flows.guided import guided_forward, weight_at
from flowdiff.models.flows.masked_walk import ReadNet, masked_inverse
from flowdiff.models.nn.control import Control, Controllable, HintPart
from flowdiff.models.nn.embeddings import unit_linear
from flowdiff.models.nn.inject import zero_init
from flowdiff.models.nn.recompute import call
from flowdiff.registry import register

Slope = Annotated[float, Field(gt=0, lt=1)]

INPUT_WEIGHT_SCALE = 0.1  # scales the weights of x in a monotone net at the start, so that it is nearly linear
MAX_BISECTION = 1e4  # bisection searches |x| up to this; x is whitened, but far out a map may be flat


class MaskedFlow(Flow, Controllable, ABC):
    """n_flows masked autoregressive transforms of zuko.

    z_i = τ(x_i; h_i),  h_i = net_i(x_1 … x_{i−1}, e),  log|det ∂z/∂x| = Σ log τ′

    The last layer of the masked nets is zero at the start. The other arguments are those of the families below.

    Args:
        univariate: makes the function from the parameters h_i, of the given shapes, to zuko's transform τ.
        shapes: shapes of the parameters of τ for one dimension.
    """

    takes_gate = True
    inverse_by = "dimension by dimension"
    elementwise: bool = True  # whether univariate() can make τ for a part of the dimensions

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
        from zuko.nn import MaskedLinear

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
                activation=partial(ActivationLayer, activation),
            )
            for i in range(n_flows)
        ]
        for transform in transforms:
            zero_init(transform.hyper[-1])
            for layer in transform.hyper:
                if isinstance(layer, MaskedLinear):
                    layer.mask = layer.mask.to(layer.weight)  # so that mask·weight needs no conversion
        self.dim = dim
        self.embed_dim = embed_dim
        self.checkpoint = checkpoint
        self.controls = nn.ModuleList()
        self.transform = LazyComposedTransform(*transforms)

    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        z, logdet = x, x.new_zeros(len(x))
        for i in range(len(self.transform.transforms)):
            z, term = call(self._data_to_base, i, z, cond, checkpoint=self.checkpoint)
            logdet = logdet + term
        return z, logdet

    def make_control(self, part: HintPart) -> Control:
        return MaskedControl([transform.hyper for transform in self.transform.transforms], part, self.embed_dim)

    def _data_to_base(self, i: int, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        return self._call_and_logdet(self._conditioned(i, cond), x)

    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        x, logdet = z, z.new_zeros(len(z))
        for i in reversed(range(len(self.transform.transforms))):
            transform = self.transform.transforms[i]
            if torch.is_grad_enabled() or self.dim == 1 or not self.elementwise:
                x, term = self._call_and_logdet(self._conditioned(i, cond).inv, x)
            else:
                make_tau = partial(self.tau, transform, cond)
                guide = None if cond.guidance is None else partial(self._guide, cond.guidance, transform.passes)
                with torch.autocast(z.device.type, enabled=False):
                    x, term = masked_inverse(transform, make_tau, x.flatten(1), self._nets(i, cond), guide)
            logdet = logdet + term
        return x.reshape(z.shape), logdet

    def tau(self, transform: Any, cond: Conditioning, h: Tensor) -> Transform:
        """zuko's τ for a batch of conditions and the outputs h (B, …, total) of the masked net."""
        from zuko.utils import unpack

        return transform.univariate(*unpack(gated(h, cond), transform.shapes))

    def _nets(self, i: int, cond: Conditioning) -> list[ReadNet]:
        """The masked nets of the i-th transform: its own, and those of its controls."""
        others = (control for control in self.active(cond) if isinstance(control, MaskedControl))
        return [ReadNet(self.transform.transforms[i].hyper, embedding(cond)), *(one.net(i, cond) for one in others)]

    def _conditioned(self, i: int, cond: Conditioning) -> Transform:
        """zuko's i-th transform for a batch of conditions, with the gate."""
        from zuko.transforms import AutoregressiveTransform, DependentTransform

        transform = self.transform.transforms[i]
        own, *others = self._nets(i, cond)

        def elementwise(*given: Tensor) -> Transform:
            h = own.hyper(torch.cat([*given, own.e], dim=1))
            for net in others:
                h = h + net.strength * net.hyper(torch.cat([*given, net.e], dim=1))
            return DependentTransform(self.tau(transform, cond, h.unflatten(1, (-1, transform.total))), 1)

        if self.dim == 1:  # zuko's net then reads e alone
            return elementwise()
        return AutoregressiveTransform(elementwise, transform.passes)

    def _guide(self, guidance: Tensor, passes: int, tau: Any, step: int) -> None:
        """Guide zuko's affine τ, which consists of shift, log_scale and scale; the dimensions of a step are a token."""
        tau.log_scale, tau.shift = guided_forward(tau.log_scale, tau.shift, weight_at(guidance, step, passes))
        tau.scale = tau.log_scale.exp()

    def _call_and_logdet(self, transform: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):  # autocast would round x at the input of the nets
            z, logdet = transform.call_and_ladj(x.flatten(1))
        if not torch.is_grad_enabled():  # zuko's monotone transforms record a graph anyway
            z, logdet = z.detach(), logdet.detach()
        return z.view_as(x), logdet


@final
class MaskedControl(Control):
    """Trainable copies of the masked nets of a flow, whose e contains a hint; 0 at the start.

    e ← e + silu(H h)

    Args:
        nets: the masked nets.
        part: the hint.
        embed_dim: width of e.
    """

    def __init__(self, nets: Sequence[nn.Sequential], part: HintPart, embed_dim: int):
        super().__init__(part)
        self.nets = nn.ModuleList(copy.deepcopy(net).requires_grad_(True) for net in nets)
        for masked in self.nets:
            assert isinstance(masked, nn.Sequential)  # nn.ModuleList does not keep the type of its elements
            zero_init(masked[-1])
        self.entry = unit_linear(part.size, embed_dim, bias=False)
        self.to(next(nets[0].parameters()))

    def net(self, i: int, cond: Conditioning) -> ReadNet:
        """The i-th net, and its e."""
        hint = self.entry(self.hint(cond).flatten(1))
        return ReadNet(self.nets[i], embedding(cond) + nn.functional.silu(hint), self.strength)


@final
class ActivationLayer(nn.Module):
    """An activation as a layer of zuko's nets."""

    def __init__(self, activation: Activation):
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation.plain(x)


@register("flow", "maf")
@final
class MAF(MaskedFlow):
    """zuko's masked autoregressive flow: affine maps, for vectors; with passes=2 a RealNVP.

    τ(x) = x·e^s + t,  s = a/(1 + |a/c|),  c = −ln min_slope,  (a, t) from a masked net

    The flow starts as the identity and its inverse is exact. The score is continuous; its derivative jumps at a = 0.

    Args:
        shape: shape of one sample, of any rank, flattened to D = prod(shape) dimensions.
        embed_dim: width of the embedding e = cond.vector (B, embed_dim).
        activation: nonlinearity of the masked nets.
        n_flows: maps applied one after the other, ≥ 1.
        hidden: width of the masked nets, ≥ 1.
        depth: hidden layers of the masked nets, ≥ 1.
        passes: groups of dimensions, each depends on those before it, and passes of the inverse; 2: coupling; None: D.
        random_order: random order of the dimensions in each map, kept in the state dict; else ascending, descending.
        min_slope: smallest scale e^s, in (0, 1); its reciprocal is the largest.
        checkpoint: recompute each map in the backward pass instead of storing its activations.

    Source: Papamakarios, Pavlakou, Murray, Masked Autoregressive Flow for Density Estimation, 2017.
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
        self.guidance_orders = ("all", "token") if self.dim > 1 else ()


@register("flow", "nsf")
@final
class NSF(MaskedFlow):
    """zuko's neural spline flow: autoregressive rational-quadratic splines, for vectors.

    τ a monotone spline of `bins` pieces on [−5, 5], its knots and slopes from a masked net; outside τ(x) = x

    The flow starts as the identity and its inverse is exact. τ is C¹: the score jumps at the knots and at ±5.

    Args:
        shape: shape of one sample, of any rank, flattened to D = prod(shape) dimensions.
        embed_dim: width of the embedding e = cond.vector (B, embed_dim).
        activation: nonlinearity of the masked nets.
        n_flows: maps applied one after the other, ≥ 1.
        hidden: width of the masked nets, ≥ 1.
        depth: hidden layers of the masked nets, ≥ 1.
        passes: groups of dimensions, each depends on those before it, and passes of the inverse; 2: coupling; None: D.
        random_order: random order of the dimensions in each map, kept in the state dict; else ascending, descending.
        bins: pieces of a spline, ≥ 2.
        min_slope: smallest slope at a knot, in (0, 1); its reciprocal is the largest.
        checkpoint: recompute each map in the backward pass instead of storing its activations.

    Source: Durkan, Bekasov, Murray, Papamakarios, Neural Spline Flows, 2019.
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
    """zuko's neural autoregressive flow: a monotone net per dimension, for vectors.

    z_i = (1 − γ²)·x_i + γ²·τ(x_i; h_i),  τ a net with positive weights, increasing in x_i, h_i from a masked net

    The flow starts as the identity up to 20 % at |x| = 5. The hidden layers of τ are ELUs, whatever the activation: the
    score jumps at their kinks. The inverse is found by bisection and Newton's method within |x| < 10,000, and can be
    differentiated once.

    Args:
        shape: shape of one sample, of any rank, flattened to D = prod(shape) dimensions.
        embed_dim: width of the embedding e = cond.vector (B, embed_dim).
        activation: nonlinearity of the masked nets.
        n_flows: maps applied one after the other, ≥ 1.
        hidden: width of the masked nets, ≥ 1.
        depth: hidden layers of the masked nets, ≥ 1.
        passes: groups of dimensions, each depends on those before it, and passes of the inverse; 2: coupling; None: D.
        random_order: random order of the dimensions in each map, kept in the state dict; else ascending, descending.
        signal: numbers in h_i, ≥ 1.
        monotone_hidden: width of the two hidden layers of τ, ≥ 1.
        checkpoint: recompute each map in the backward pass instead of storing its activations.

    Source: Huang, Krueger, Lacoste, Courville, Neural Autoregressive Flows, 2018.
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
            shape, embed_dim, activation, lambda: MonotoneNets(dim, signal, monotone_hidden), [(signal,)], *nets
        )

    def tau(self, transform: Any, cond: Conditioning, h: Tensor) -> Transform:
        return transform.univariate(h.flatten(2), cond.gate)


@final
class MonotoneNets(nn.Module):
    """h (…, D, signal) → τ, by zuko's monotone nets, one per dimension, rescaled so that τ(±1) = ±1 for h = 0."""

    def __init__(self, dim: int, signal: int, hidden: int):
        super().__init__()
        from zuko.flows.neural import MNN

        self.make = MNN(signal=signal, stack=dim, hidden_features=[hidden] * 2)
        first, last = self.make.network[0], self.make.network[-1]
        with torch.no_grad():
            first.weight[..., 0] *= INPUT_WEIGHT_SCALE  # the weights of x
            low, high = (self.make.f(torch.zeros(dim, signal), torch.full((dim,), end)) for end in (-1.0, 1.0))
            stretch = 2 / (high - low)  # (D,)
            last.weight *= stretch[:, None, None]
            last.bias.copy_((last.bias - ((low + high) / 2)[:, None]) * stretch[:, None])

    def forward(self, h: Tensor, gate: Tensor | None = None) -> Transform:
        transform = self.make(h)
        transform.bound = MAX_BISECTION
        if gate is not None:
            transform.f = partial(self._blend, transform.f, gate[:, None])
        return NewtonInverse(transform)

    @staticmethod
    def _blend(tau: Callable[[Tensor], Tensor], gate: Tensor, x: Tensor) -> Tensor:
        return x + gate * (tau(x) - x)


@final
class NewtonInverse(Transform):
    """An increasing τ of zuko; Newton's method refines its inverse, which bisection finds to 1e-6, to rounding."""

    domain = codomain = constraints.real
    bijective = True

    def __init__(self, transform: Any):  # zuko adds call_and_ladj to torch's Transform
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
        return self._step(x.detach(), y)  # carries the gradient of the implicit function

    def _step(self, x: Tensor, y: Tensor) -> Tensor:
        value, log_slope = self.call_and_ladj(x)
        return x - (value - y) * torch.exp(-log_slope.detach())
