"""Samples changed, and ways between them, by the points that they are images of."""

from __future__ import annotations

import torch
from torch import Tensor

from flowdiff.diffusion.inversion import Inversion
from flowdiff.evaluation.densities.interpolation import great_circle
from flowdiff.models.conditioning import Conditioning


def changed(inversion: Inversion, x: Tensor, source: Conditioning | None, target: Conditioning | None) -> Tensor:
    """Samples x (B, *shape) encoded at one condition and decoded at another, without noise.

    x' = decode(encode(x; source); target)
    """
    return inversion.decode(inversion.encode(x, source), target)


def between(
    inversion: Inversion, ends: Tensor, source: Conditioning | None, target: Conditioning | None, count: int
) -> Tensor:
    """`count` samples on the great circle of the points of two samples, ends (2, *shape): (count, *shape).

    Args:
        inversion: the map to points.
        ends: the two samples.
        source: their conditions.
        target: the conditions of the `count` samples.
        count: ≥ 2; the first and the last are the ends again.
    """
    a, b = inversion.encode(ends, source).flatten(1)
    t = torch.linspace(0, 1, count).to(ends)
    return inversion.decode(great_circle(a[None], b[None], t)[0].view(count, *ends.shape[1:]), target)


def reconstruction_error(inversion: Inversion, x: Tensor, cond: Conditioning | None) -> Tensor:
    """The root mean square of decode(encode(x)) − x of each sample, (B,)."""
    return (changed(inversion, x, cond, cond) - x).square().flatten(1).mean(1).sqrt()
