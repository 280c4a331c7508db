"""Base → data through a masked autoregressive map, computing each unit of its net once.

    x_i = τ⁻¹(z_i; h_i),   h_i = Σ_k s_k·net_{k,i}(x_1 … x_{i−1}, e_k)

with one net, or with those of its controls too.

The usual way runs the whole net once per dimension. But a hidden unit that depends on x_1 … x_j alone is final as soon
as these are known: each step computes the units that the last step made final, and all steps together run the net once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class ReadNet(NamedTuple):
    """A masked net, what it reads besides x, and what its output is multiplied by.

    Args:
        hyper: linear layers of zuko.nn.MaskedLinear with activations between them.
        e: (B, E).
        strength: s.
    """

    hyper: Any
    e: Tensor
    strength: float = 1.0


def masked_inverse(
    transform: Any,
    make_tau: Callable[[Tensor], Any],
    z: Tensor,
    nets: Sequence[ReadNet],
    guide: Callable[[Any, int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """z (B, D) → x (B, D), log|det ∂x/∂z| (B,) by a MaskedAutoregressiveTransform of zuko.

    It writes into its buffers, so autograd cannot follow it. τ must be elementwise: it is made for the dimensions of
    each step alone, of h (B, dims, total). `guide` may change the τ (B, dims) of each step 0, 1, ….
    """
    walks = [_Walk(transform, net, z) for net in nets]
    x, z = torch.zeros_like(z.T, memory_format=torch.contiguous_format), z.T
    logdet = z.new_zeros(z.shape[1])
    for step, dims in enumerate(indices_per_step(transform.order, transform.passes)):
        first, *others = (walk.output(step) for walk in walks)
        h = sum(others, start=first).T.unflatten(1, (len(dims), -1))  # (B, dims, total)
        tau = make_tau(h)
        if guide is not None:
            guide(tau, step)
        x_dims, log_slope = tau.inv.call_and_ladj(z[dims].T)
        x[dims] = x_dims.T
        for walk in walks:
            walk.known[dims] = x[dims]
        logdet += log_slope.sum(1)
    return x.T, logdet


class _Walk:
    """The units of one net, which become final step by step.

    known: (D, B), the dimensions of x so far.
    """

    def __init__(self, transform: Any, net: ReadNet, z: Tensor):
        layers = list(net.hyper)
        self.strength = net.strength
        linears, self.activations = layers[::2], layers[1::2]
        entry = torch.cat([torch.zeros_like(z), net.e], 1).T.contiguous()  # one row per unit, contiguous in memory
        self.hidden = [entry, *(z.new_zeros(linear.out_features, len(z)) for linear in linears[:-1])]
        self.known = entry[: z.shape[1]]
        *self.inner, self.last = units_per_step(transform, linears)

    def output(self, step: int) -> Tensor:
        """The outputs that step needs, (n, B)."""
        for source, target, activation, steps in zip(
            self.hidden, self.hidden[1:], self.activations, self.inner, strict=False
        ):
            units, weight, bias = steps[step]
            if len(units):
                target[units] = activation(torch.addmm(bias, weight, source))
        _, weight, bias = self.last[step]
        h = torch.addmm(bias, weight, self.hidden[-1])
        return h if self.strength == 1 else self.strength * h


def units_per_step(transform: Any, linears: list[Any]) -> list[list[tuple[Tensor, Tensor, Tensor]]]:
    """For each layer and step: the units that become final, with their masked weights (n, ·) and biases (n, 1).

    linears: the masked linear layers of the transform's net, zuko.nn.MaskedLinear.
    """
    order = transform.order
    context = order.new_zeros(linears[0].in_features - len(order))
    known = torch.cat([order + 1, context])  # the first step at which an input, then each layer's unit, is known
    layers = []
    for linear in linears:
        known = (linear.mask.to(known) * known).amax(1)
        # The parameters of a dimension are read at its own step, which may be later than they are known.
        step_of = known if linear is not linears[-1] else order.repeat_interleave(transform.total)
        units = indices_per_step(step_of, transform.passes)
        rows, sizes = torch.cat(units), [len(indices) for indices in units]
        weight, bias = (linear.mask * linear.weight)[rows], linear.bias[rows, None]
        layers.append(list(zip(units, weight.split(sizes), bias.split(sizes), strict=True)))
    return layers


def indices_per_step(step_of: Tensor, steps: int) -> tuple[Tensor, ...]:
    """For each step 0, 1, …, steps − 1: the indices at which step_of equals it."""
    return step_of.argsort(stable=True).split(step_of.bincount(minlength=steps).tolist())
