"""Base → data through a masked autoregressive map, computing each unit of its net once.

    x_i = τ⁻¹(z_i; h_i),   h_i = net_i(x_1 … x_{i−1}, e)

The usual way runs the whole net once per dimension. But a hidden unit that depends on x_1 … x_j alone is final as soon
as these are known: each step computes the units that the last step made final, and all steps together run the net once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def masked_inverse(
    transform: Any,
    make_tau: Callable[[Tensor], Any],
    z: Tensor,
    e: Tensor,
    guide: Callable[[Any, int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """z (B, D), e (B, E) → x (B, D), log|det ∂x/∂z| (B,) by a MaskedAutoregressiveTransform of zuko.

    It writes into its buffers, so autograd cannot follow it. τ must be elementwise: it is made for the dimensions of
    each step alone, of h (B, dims, total). `guide` may change the τ (B, dims) of each step 0, 1, ….
    """
    layers = list(transform.hyper)
    linears, activations = layers[::2], layers[1::2]
    hidden = [torch.cat([torch.zeros_like(z), e], 1).T.contiguous()]  # one row per unit, contiguous in memory
    hidden += [z.new_zeros(linear.out_features, len(z)) for linear in linears[:-1]]
    x, z = hidden[0][: z.shape[1]], z.T
    logdet = z.new_zeros(z.shape[1])
    *inner, last = units_per_step(transform, linears)
    for step, dims in enumerate(indices_per_step(transform.order, transform.passes)):
        for source, target, activation, steps in zip(hidden, hidden[1:], activations, inner, strict=False):
            units, weight, bias = steps[step]
            if len(units):
                target[units] = activation(torch.addmm(bias, weight, source))
        _, weight, bias = last[step]
        h = torch.addmm(bias, weight, hidden[-1]).T.unflatten(1, (len(dims), -1))  # (B, dims, total)
        tau = make_tau(h)
        if guide is not None:
            guide(tau, step)
        x_dims, log_slope = tau.inv.call_and_ladj(z[dims].T)
        x[dims] = x_dims.T
        logdet += log_slope.sum(1)
    return x.T, logdet


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
