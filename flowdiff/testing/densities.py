"""Laws of a density and its score, given as functions of x: for flows, networks, and anything else with a density."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from flowdiff.shapes import append_dims
from flowdiff.testing.compare import require, require_at_most, require_close

LogProb = Callable[[Tensor], Tensor]
"""x (B, …) → log p(x) in nats, (B,)."""


def jacobians(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """∂ function(x)_b / ∂ x_b for each sample b of x (B, …) with D numbers: (B, D, D)."""
    D = x[0].numel()
    full = torch.autograd.functional.jacobian(lambda v: function(v).flatten(1).sum(0), x)
    return full.reshape(D, len(x), D).transpose(0, 1)


def density_integrates_to_one(log_prob: LogProb, draws: Tensor, *, points: int = 160, tolerance: float = 1e-3) -> None:
    """∫p = 1 on a grid of two dimensions that covers all draws.

    A sum over a grid is not exact for a density with kinks or sharp peaks, but its error vanishes on finer grids: where
    the sum is wrong, grids of twice and four times as many points decide.

    Args:
        log_prob: the density of the plane.
        draws: exact samples (N, 2), N so large that the mass outside of their box is below the tolerance.
        points: number of grid points along each dimension.
        tolerance: largest |∫p − 1|: about one sample in N lies outside of the box.
    """
    low, high = draws.detach().amin(0), draws.detach().amax(0)
    margin = 0.15 * (high - low)
    masses = []
    for finer in (1, 2, 4):
        ends = zip(low - margin, high + margin, strict=True)
        axes = [torch.linspace(float(a), float(b), finer * points, dtype=draws.dtype) for a, b in ends]
        with torch.no_grad():
            p = log_prob(torch.cartesian_prod(*axes)).exp()
        masses.append(float(p.sum()) * math.prod(float(axis[1] - axis[0]) for axis in axes))
        if abs(masses[-1] - 1) <= tolerance:
            return
    found = ", ".join(f"{mass:.6g}" for mass in masses)
    require(
        False, "∫p = 1", f"sums over grids of {points}² points and finer ones are {found}; ±{tolerance:g} is allowed"
    )


def score_is_gradient(log_prob: LogProb, score: Tensor, x: Tensor, step: Tensor) -> None:
    """The score is ∇ₓ log p, by central differences.

    Args:
        log_prob: log p.
        score: the score at x, (B, …).
        x: (B, …) float64.
        step: (B,), small against the scale on which log p changes; the error is step²·third derivative.
    """
    slopes = []
    with torch.no_grad():
        for unit in torch.eye(x[0].numel(), dtype=x.dtype):
            move = append_dims(step, x.ndim) * unit.view(x.shape[1:])
            slopes.append((log_prob(x + move) - log_prob(x - move)) / (2 * step))
    require_close(score, torch.stack(slopes, 1).view_as(x), "score = ∇ₓ log p", rtol=1e-5, atol=1e-5)


def score_jacobian_is_symmetric(log_prob: LogProb, x: Tensor) -> None:
    """∂s/∂x is symmetric, because it is the Hessian of log p: x (B, …) float64, s by autograd."""

    def score(v: Tensor) -> Tensor:
        return torch.autograd.grad(log_prob(v).sum(), v, create_graph=True)[0]

    J = jacobians(score, x.detach().requires_grad_())
    size = J.abs().amax((1, 2), keepdim=True).expand_as(J)
    require_at_most((J - J.mT).abs(), 1e-9 * torch.minimum(size, 1 + J.abs()), "∂s/∂x = (∂s/∂x)ᵀ")


def samples_follow_the_density(score: Tensor, x: Tensor) -> None:
    """With x ~ p of D dimensions E[s(x)] = 0 and E[(x − μ)·s(x)] = −D for any μ (Stein's identity).

    Args:
        score: the score of p at x, (N, D).
        x: exact samples (N, D), enough for `tells_a_wrong_scale`.
    """
    law = "samples follow the density"
    require(tells_a_wrong_scale(score, x), law, f"{len(x)} samples cannot tell: take more")
    inner = ((x - x.mean(0)) * score).sum(1)
    found, right, allowed = float(inner.mean()), -x.shape[1], _five_errors(inner)
    require(abs(found - right) <= allowed, law, f"E[(x − μ)·s] is {found:.4g} instead of {right} ± {allowed:.2g}")
    require_at_most(score.mean(0).abs(), 5 * score.std(0) / len(x) ** 0.5, f"{law}: E[s] = 0")


def tells_a_wrong_scale(score: Tensor, x: Tensor) -> bool:
    """Whether N samples are enough to tell a scale that is wrong by 20 % from the right one."""
    return _five_errors(((x - x.mean(0)) * score).sum(1)) < 0.2 * x.shape[1]


def _five_errors(values: Tensor) -> float:
    """Five standard errors of the mean."""
    return 5 * float(values.std()) / len(values) ** 0.5
