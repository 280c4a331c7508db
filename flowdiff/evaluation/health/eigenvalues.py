"""The smallest eigenvalue of ∂D/∂x on the trajectories of a run's own sampler.

For x = x0 + σ·noise with any distribution of x0, the denoiser D = E[x0|x] = x + σ²∇log p_σ has the Jacobian

    ∂D/∂x = I + σ²∇∇ᵀ log p_σ(x) = Cov[x0|x]/σ²,

which is symmetric and has no negative eigenvalue. Nothing in a network says so. Where an eigenvalue is negative, D
belongs to no distribution of x0, and where it is far below −1 an explicit step of a sampler overshoots: the step from σ
to σ' multiplies a deviation along the eigenvector by σ'/σ + (1 − σ'/σ)·eigenvalue.

The Jacobian of a density's D is symmetric. Of a raw network's, the symmetric part (J + Jᵀ)/2 is taken. Its products
with vectors v come from graphs that are recorded once for a batch: for a density σ²·∂(s·v)/∂x + v with the score s; for
a raw network Jᵀv = ∂(D·v)/∂x, and Jv = ∂(g·v)/∂u of g(u) = Jᵀu, which is linear in u.

The eigenvalue is the smallest Ritz value of a Krylov space, spanned by v, Jv, J²v, … It is never below the smallest
eigenvalue, equals it when the space has all dimensions, and is close to it long before where that one lies apart.

Source: Golub, Van Loan, Matrix computations, 2013, section 10.1 (Lanczos, with all vectors orthogonalised again).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from flowdiff.data.readers import evenly
from flowdiff.diffusion.model import ConditionedDenoiser
from flowdiff.evaluation.health.trajectories import AtLevel
from flowdiff.models.conditioning import Conditioning
from flowdiff.runs.health import Curve
from flowdiff.shapes import append_dims

VECTOR_SEED = 4  # of the first vector of the Krylov space
ITERATIONS = 20  # dimensions of the Krylov space
MOST_LEVELS = 20  # of a sampler with more steps so many levels are looked at
BATCH = 64  # points whose graphs are kept at a time

Product = Callable[[Tensor], Tensor]
"""v ↦ Jv, both like x (B, …): the product of each sample's symmetric Jacobian with its own vector."""


def smallest_on_trajectories(denoiser: ConditionedDenoiser, steps: Sequence[AtLevel]) -> Curve:
    """The smallest eigenvalue over the trajectories at each of their noise levels; NaN where none is finite.

    Args:
        denoiser: the model; its network must be twice differentiable.
        steps: trajectories of the run's sampler; of more than MOST_LEVELS steps so many are looked at, evenly spaced.
    """
    kept = [steps[i] for i in reversed(evenly(len(steps), MOST_LEVELS).tolist())]
    n = len(kept[0].x)
    x = torch.cat([step.x for step in kept])
    sigma = torch.cat([x.new_full((n,), step.sigma) for step in kept])
    conds = [step.cond for step in kept if step.cond is not None]
    cond = Conditioning.cat(conds) if conds else None
    parts = [
        smallest_eigenvalue(denoiser, x[rows], sigma[rows], None if cond is None else cond[rows])
        for rows in torch.arange(len(x), device=x.device).split(BATCH)
    ]
    found = torch.cat(parts).view(len(kept), n).nan_to_num(math.inf, math.inf, math.inf).amin(1)
    value = (v if math.isfinite(v) else math.nan for v in found.tolist())
    return Curve(tuple(step.sigma for step in kept), tuple(value))


def smallest_eigenvalue(
    denoiser: ConditionedDenoiser,
    x: Tensor,
    sigma: Tensor,
    cond: Conditioning | None = None,
    iterations: int = ITERATIONS,
) -> Tensor:
    """The smallest eigenvalue of the symmetric part of ∂D/∂x at each sample, (B,) float64; NaN where J is not finite.

    Args:
        denoiser: the model.
        x: samples, (B, …).
        sigma: their noise levels, (B,).
        cond: their condition.
        iterations: dimensions of the Krylov space, ≥ 1; the eigenvalue is exact from dim on.
    """
    start = torch.randn(x[0].numel(), generator=torch.Generator().manual_seed(VECTOR_SEED), dtype=torch.float64)
    # A compiled network, and a fused attention, cannot be differentiated twice.
    with torch.enable_grad(), torch.compiler.set_stance("force_eager"), sdpa_kernel(SDPBackend.MATH):
        product = _product(denoiser, x, sigma, cond)
        return _smallest_ritz_value(product, x, start.to(x.device), iterations)


def _product(denoiser: ConditionedDenoiser, x: Tensor, sigma: Tensor, cond: Conditioning | None) -> Product:
    x = x.detach().requires_grad_(True)
    if denoiser.is_density:  # its D has no graph back to x in eval mode, its log-density has one
        (score,) = torch.autograd.grad(denoiser.log_prob(x, sigma, cond).sum(), x, create_graph=True)

        def of_density(v: Tensor) -> Tensor:
            (curved,) = torch.autograd.grad(score, x, v, retain_graph=True)
            return v + append_dims(sigma**2, x.ndim) * curved

        return of_density
    denoised = denoiser(x, sigma, cond)
    u = torch.zeros_like(denoised, requires_grad=True)
    (pulled,) = torch.autograd.grad(denoised, x, u, create_graph=True)  # Jᵀu

    def of_network(v: Tensor) -> Tensor:
        (pulled_v,) = torch.autograd.grad(denoised, x, v, retain_graph=True)
        (pushed_v,) = torch.autograd.grad(pulled, u, v, retain_graph=True)
        return (pulled_v + pushed_v) / 2

    return of_network


def _smallest_ritz_value(product: Product, x: Tensor, start: Tensor, iterations: int) -> Tensor:
    """The smallest eigenvalue of QᵀJQ, (B,), with the basis Q (D, k) of the Krylov space of J and `start` (D,).

    QᵀJQ is computed in full and not from the recurrence of Lanczos, so that it is right for any orthonormal Q: if the
    space is exhausted, a random vector continues it.
    """
    n, dim = len(x), len(start)
    generator = torch.Generator().manual_seed(VECTOR_SEED + 1)
    basis, images = start.new_zeros(n, 0, dim), start.new_zeros(n, 0, dim)
    w = start.expand(n, dim)
    for _ in range(min(iterations, dim)):
        w = _orthogonal_to(basis, w)
        fresh = torch.randn(dim, generator=generator, dtype=torch.float64).to(start.device).expand(n, dim)
        w = torch.where(w.norm(dim=1, keepdim=True) > 1e-12, w, _orthogonal_to(basis, fresh))
        q = w / w.norm(dim=1, keepdim=True)
        image = product(q.to(x).view_as(x)).flatten(1).double()
        basis, images = torch.cat([basis, q[:, None]], 1), torch.cat([images, image[:, None]], 1)
        w = image / image.norm(dim=1, keepdim=True).clamp(min=1e-300)
    projected = basis @ images.mT  # (B, k, k)
    projected = (projected + projected.mT) / 2
    finite = projected.isfinite().all(2).all(1)
    projected = torch.where(finite[:, None, None], projected, 0.0)
    return torch.where(finite, torch.linalg.eigvalsh(projected)[:, 0], math.nan)


def _orthogonal_to(basis: Tensor, w: Tensor) -> Tensor:
    """w (B, D) without its part in the rows of basis (B, k, D); twice, because once leaves a rounding error."""
    for _ in range(2):
        w = w - ((basis @ w[..., None]) * basis).sum(1)
    return w
