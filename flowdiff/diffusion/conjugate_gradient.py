"""Conjugate gradients for the linear systems of a batch, each with a matrix that is known by its products only."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flowdiff.shapes import append_dims, sum_except_batch


def solve(product: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """u with M·u ≈ b, like b, for a symmetric positive definite M of each sample, from u = 0.

    In exact arithmetic u is exact after as many iterations as M has distinct eigenvalues; u of fewer iterations is the
    best in the energy norm within the Krylov space of b. A sample stops early where its residual is at the rounding
    error of b, and where a direction p has pᵀMp ≤ 0, at which M is not positive definite and u so far is kept.

    Args:
        product: v ↦ M·v, both like b.
        b: right-hand sides, (B, …).
        iterations: products at most, ≥ 1.

    Source: Hestenes & Stiefel, Methods of conjugate gradients for solving linear systems, 1952.
    """
    u, r = torch.zeros_like(b), b
    p, square = r, sum_except_batch(r**2)
    enough = (torch.finfo(b.dtype).eps ** 2) * square
    for _ in range(iterations):
        image = product(p)
        curvature = sum_except_batch(p * image)
        going = (square > enough) & (curvature > 0)
        if not bool(going.any()):
            break
        length = append_dims(
            torch.where(going, square / curvature.where(going, torch.ones_like(curvature)), 0.0), b.ndim
        )
        u, r = u + length * p, r - length * image
        after = torch.where(going, sum_except_batch(r**2), 0.0)
        growth = append_dims(torch.where(going, after / square.where(going, torch.ones_like(square)), 0.0), b.ndim)
        p, square = r + growth * p, after
    return u
