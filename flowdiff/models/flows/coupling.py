"""Couplings: one half of x is kept and determines how the other half is transformed, elementwise and monotonically.

    z_kept = x_kept,   z_moved = τ(x_moved; net(x_kept; e)),   log|det ∂z/∂x| = Σ log τ′

τ is a *transform*, a family of increasing bijections of ℝ; e is the embedding of (¼ ln σ, c). The halves are taken
along dimension 1, the entries of a vector or the channels of an image; a permutation before the coupling chooses them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn

from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.flows.base import Flattened, Flow, Sequential
from flowdiff.models.flows.gate import gated
from flowdiff.models.flows.guided import guided_forward
from flowdiff.shapes import sum_except_batch

# (in_features, out_features) → net(x (B, in_features, …), cond) → (B, out_features, …), zero at the start.
NetFactory = Callable[[int, int], nn.Module]


class Transform(ABC):
    """A family of increasing bijections τ of ℝ with `num_params` unbounded parameters; with all 0, τ is the identity.

    x is (B, N, …) and params (B, num_params, N, …). τ is C² in x and in params unless its docstring says otherwise.
    """

    num_params: int

    @abstractmethod
    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """τ(x) and log τ′(x), both like x."""

    @abstractmethod
    def inverse(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """x with τ(x) = y, and log dx/dy = −log τ′(x), both like y."""


@final
class Affine(Transform):
    """Scale and shift, with a bounded log-scale.

    y = x·e^s + t,  s = c·tanh(a/c),  params (a, t)

    Args:
        scale_bound: c > 0 in nats; |s| stays below it.
    """

    num_params = 2

    def __init__(self, scale_bound: float):
        self.scale_bound = scale_bound

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        s, t = self._scale_shift(params)
        return torch.addcmul(t, x, s.exp()), s

    def inverse(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        s, t = self._scale_shift(params)
        return (y - t) * (-s).exp(), -s

    def guided_inverse(self, y: Tensor, params: Tensor, guidance: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse of a batch of pairs, guided with the weights guidance (B, 2) of a flow without tokens."""
        s, t = guided_forward(*self._scale_shift(params), guidance[:, 1])
        return (y - t) * (-s).exp(), -s

    def _scale_shift(self, params: Tensor) -> tuple[Tensor, Tensor]:
        a, t = params.unbind(1)
        c = self.scale_bound
        return torch.sigmoid(a * (2 / c)) * (2 * c) - c, t  # c·tanh(a/c); torch.tanh takes twice as long


def inverse_of(transform: Transform, y: Tensor, params: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
    """The inverse of a transform, guided if the condition says so."""
    if cond.guidance is None:
        return transform.inverse(y, params)
    assert isinstance(transform, Affine)  # flows of other transforms have no guidance_orders
    return transform.guided_inverse(y, params, cond.guidance)


class Coupling(Flow):
    """One half of dimension 1 is kept; a net that reads it gives the parameters that transform the other half.

    z_kept = x_kept,  z_moved = τ(x_moved; net(x_kept; e)),  log|det| = Σ log τ′

    Args:
        size: size of dimension 1 of x (B, size, …); if it is odd the second half is the larger one.
        first: whether the first half is transformed; otherwise the second.
        transform: τ, with P parameters per transformed entry.
        make_net: makes the net (B, kept, …) → (B, P·moved, …); its output holds one parameter of all entries, then
            the next.
    """

    def __init__(self, size: int, first: bool, transform: Transform, make_net: NetFactory):
        super().__init__()
        self.first = first
        self.sizes = [size // 2, size - size // 2]
        moved, kept = self.sizes if first else self.sizes[::-1]
        self.transform = transform
        self.net = make_net(kept, transform.num_params * moved)

    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        kept, moved = self._split(x)
        moved, log_slope = self.transform.forward(moved, self._params(kept, cond))
        return self._join(kept, moved), sum_except_batch(log_slope)

    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        kept, moved = self._split(z)
        moved, log_slope = inverse_of(self.transform, moved, self._params(kept, cond), cond)
        return self._join(kept, moved), sum_except_batch(log_slope)

    def _params(self, kept: Tensor, cond: Conditioning) -> Tensor:
        params = self.net(kept, cond).to(kept.dtype)  # the net may run under autocast, the transform must not
        return gated(params, cond).unflatten(1, (self.transform.num_params, -1))  # (B, P, moved, …)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        head, tail = x.split_with_sizes(self.sizes, dim=1)
        return (tail, head) if self.first else (head, tail)

    def _join(self, kept: Tensor, moved: Tensor) -> Tensor:
        return torch.cat([moved, kept] if self.first else [kept, moved], dim=1)


class Permutation(Flow):
    """A fixed permutation of dimension 1.

    z_i = x_{order(i)},  log|det| = 0

    Args:
        order: (D,) integers, the permutation of dimension 1 of x (B, D, …).
    """

    order: Tensor
    inverse_order: Tensor

    def __init__(self, order: Tensor):
        super().__init__()
        self.register_buffer("order", order)
        self.register_buffer("inverse_order", order.argsort())

    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        return x.index_select(1, self.order), x.new_zeros(len(x))

    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        return z.index_select(1, self.inverse_order), z.new_zeros(len(z))


def alternating_couplings(
    size: int, n_flows: int, order: Callable[[int], Tensor], transform: Transform, make_net: NetFactory
) -> list[Flow]:
    """n_flows couplings of x (B, size, …) for a Sequential; the two couplings of a pair transform opposite halves.

    order(i) is the permutation of dimension 1 that chooses the halves of pair i. The last permutation undoes the
    others, so that the whole starts as the identity, as its couplings do.
    """
    flows: list[Flow] = []
    restore = torch.arange(size)  # current position of each original entry
    for i in range(n_flows):
        if i % 2 == 0:
            permutation = Permutation(order(i // 2))
            flows.append(permutation)
            restore = permutation.inverse_order[restore]
        flows.append(Coupling(size, i % 2 == 1, transform, make_net))
    return [*flows, Permutation(restore)]


def vector_couplings(
    name: str, shape: tuple[int, ...], n_flows: int, transform: Transform, make_net: NetFactory, checkpoint: bool
) -> Flattened:
    """n_flows couplings over random halves of the D = prod(shape) dimensions of a sample.

    The halves are drawn from torch's global generator and kept in the state dict. Raises ConfigurationError, for
    flow=`name`, if a sample has fewer than two dimensions.
    """
    dim = math.prod(shape)
    if dim < 2:
        raise ConfigurationError(
            f"flow={name} was given samples of shape {tuple(shape)}: a coupling needs at least two "
            "dimensions to split, so take flow=linear_activation instead."
        )
    flows = alternating_couplings(dim, n_flows, lambda pair: torch.randperm(dim), transform, make_net)
    return Flattened(Sequential(flows, checkpoint))
