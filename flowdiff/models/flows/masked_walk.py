"""Base → data through a masked autoregressive map, each unit of its net computed once.

    x_i = τ⁻¹(z_i; h_i),   h_i = net_i(x_1 … x_{i−1}, e)

The usual way runs the whole net once per dimension. But a hidden unit that sees x_1 … x_j alone is final as soon as
these are known: each step computes only what the last one completed, and all steps together run the net once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def walk(transform: Any, z: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
    """z (B, D), e (B, E) → x (B, D), log|det ∂x/∂z| (B,) by a MaskedAutoregressiveTransform of zuko.

    It writes in place, so autograd cannot follow it. τ must be elementwise: made for some dimensions as for all.
    """
    from zuko.utils import unpack

    layers = list(transform.hyper)
    linears, activations = layers[::2], layers[1::2]
    hidden = [torch.cat([torch.zeros_like(z), e], 1).T.contiguous()]  # a row per unit, which is written in one piece
    hidden += [z.new_zeros(linear.out_features, len(z)) for linear in linears[:-1]]
    x, z = hidden[0][: z.shape[1]], z.T
    logdet = z.new_zeros(z.shape[1])
    *inner, last = steps_of(transform, linears)
    for step, dims in enumerate(parts(transform.order, transform.passes)):
        for source, target, activation, todo in zip(hidden, hidden[1:], activations, inner, strict=False):
            units, weight, bias = todo[step]
            if len(units):
                target[units] = activation(torch.addmm(bias, weight, source))
        _, weight, bias = last[step]
        h = torch.addmm(bias, weight, hidden[-1]).T.unflatten(1, (len(dims), -1))  # (B, dims, total)
        tau = transform.univariate(*unpack(h, transform.shapes))
        found, log_slope = tau.inv.call_and_ladj(z[dims].T)
        x[dims] = found.T
        logdet += log_slope.sum(1)
    return x.T, logdet


def steps_of(transform: Any, linears: list[nn.Linear]) -> list[list[tuple[Tensor, Tensor, Tensor]]]:
    """For each layer and each step, the units that it completes, with their masked weights (n, ·) and biases (n, 1)."""
    order = transform.order
    context = order.new_zeros(linears[0].in_features - len(order))
    known = torch.cat([order + 1, context])  # the step from which an input, then each layer's unit, is known
    found = []
    for linear in linears:
        known = (linear.mask.to(known) * known).amax(1)
        # What the last layer says of a dimension is read at its own step, which may come later than it could.
        due = known if linear is not linears[-1] else order.repeat_interleave(transform.total)
        units = parts(due, transform.passes)
        rows, sizes = torch.cat(units), [len(part) for part in units]
        weight, bias = (linear.mask * linear.weight)[rows], linear.bias[rows, None]
        found.append(list(zip(units, weight.split(sizes), bias.split(sizes), strict=True)))
    return found


def parts(step_of: Tensor, steps: int) -> tuple[Tensor, ...]:
    """The indices of step_of at which it is 0, 1, …, steps − 1."""
    return step_of.argsort(stable=True).split(step_of.bincount(minlength=steps).tolist())
