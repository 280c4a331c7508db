"""The Fokker–Planck equation, which ties the densities of all noise levels to one diffusion.

The density p_σ of x = x0 + σ·noise solves the heat equation in σ²/2. Written for its logarithm,

    ∂_σ p = σ·Δp    ⇔    ∂_σ log p = σ·(Δ log p + ‖∇ log p‖²),

because Δp/p = Δ log p + ‖∇ log p‖². It also holds under any condition. A flow that is trained at every σ is a density
at each of them, but nothing in it says that they belong to one diffusion. The residual measures how far they are from
that, without data and without an ODE:

    R(x, σ) = ∂_σ log p − σ·(Δ log p + ‖∇ log p‖²),    nats per unit of σ

R = 0 everywhere if and only if p_σ is p_σ' noised from σ' to σ, for all σ' < σ. The number without units is σ·R/D, nats
per dimension and unit of ln σ: the derivative in σ has the weight σ, and each of its terms grows with the number of
dimensions D. With standard normal noise n = (x − x0)/σ, the terms of σ·R/D are of order one at every σ.

∂_σ log p and ∇ log p are exact, from one backward pass through log p. Δ log p = tr H, H = ∇∇ᵀ log p, is exact at D
further backward passes, or estimated from one, vᵀHv with random signs v (Hutchinson): its mean is tr H and its variance
2·Σ_{i≠j} H_ij², so a diagonal H has no error.

Sources: Risken, The Fokker–Planck equation, 1989. Lai et al., FP-Diffusion: Improving score-based diffusion models by
enforcing the underlying score Fokker–Planck equation, 2023. Hutchinson, A stochastic estimator of the trace of the
influence matrix, 1989.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from flowdiff.models.conditioning import Conditioning
from flowdiff.models.nn.sdpa import third_order
from flowdiff.noise import Generators
from flowdiff.shapes import sum_except_batch

LogProb = Callable[[Tensor, Tensor, Conditioning | None], Tensor]


def residual(
    log_prob: LogProb,
    x: Tensor,
    sigma: Tensor,
    cond: Conditioning | None = None,
    *,
    probes: Tensor | None = None,
    differentiable: bool = False,
) -> Tensor:
    """R = ∂_σ log p − σ·(Δ log p + ‖∇ log p‖²) at each sample, (B,), in nats per unit of σ.

    Divide by D and multiply by σ for the number without units. It works under no_grad.

    Args:
        log_prob: (x, sigma, cond) → log p_σ(x|c) in nats, (B,), three times differentiable in x if `differentiable`,
            else twice; `log_prob` of a density, of a Denoiser or of a model.
        x: noised samples, (B, …).
        sigma: their noise levels, (B,), > 0.
        cond: the condition of B samples, or None.
        probes: vectors v of random signs, (K, B, …), as `signs` makes them; the estimates of Δ log p are averaged over
            the K of them. None for the exact Δ log p, at D backward passes.
        differentiable: whether the result keeps the graph to the parameters and to the condition.
    """
    return residuals(log_prob, x, sigma, cond, probes=probes, differentiable=differentiable).mean(0)


def residuals(
    log_prob: LogProb,
    x: Tensor,
    sigma: Tensor,
    cond: Conditioning | None = None,
    *,
    probes: Tensor | None,
    differentiable: bool = False,
) -> Tensor:
    """R with the estimate of Δ log p by each probe alone, (K, B); K = 1 for the exact one. Arguments as `residual`.

    The estimates of two independent probes are independent given x, so the mean of R₁·R₂ is R², while the mean of R₁²
    is R² plus the variance of the estimate, 2σ²·Σ_{i≠j} H_ij².
    """
    with torch.enable_grad(), third_order() if differentiable else nullcontext():
        x = x.detach().requires_grad_(True)
        sigma = sigma.detach().requires_grad_(True)
        total = log_prob(x, sigma, cond).sum()
        with torch.autocast(x.device.type, enabled=False):  # in full precision, as the score of a flow
            score, slope = torch.autograd.grad(total, (x, sigma), create_graph=True)
            laplacian = _laplacian(score, x, probes, differentiable)
    found = slope - sigma * (laplacian + sum_except_batch(score.square()))
    return found if differentiable else found.detach()


def signs(x: Tensor, generator: Generators = None, probes: int = 1) -> Tensor:
    """Random signs ±1, (probes, B, …), for samples x (B, …); with a sequence of B generators, one for each sample."""
    if generator is None or isinstance(generator, torch.Generator):
        source = x.device if generator is None else generator.device
        drawn = torch.randint(0, 2, (probes, *x.shape), generator=generator, device=source)
    else:
        rows = [torch.randint(0, 2, (probes, *x.shape[1:]), generator=g, device=g.device) for g in generator]
        drawn = torch.stack(rows, 1)
    return (2 * drawn - 1).to(x)


def _laplacian(score: Tensor, x: Tensor, probes: Tensor | None, differentiable: bool) -> Tensor:
    """vᵀHv for each probe, (K, B); tr H, (1, B), for None."""
    if probes is None:
        units = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device).view(-1, 1, *x.shape[1:])
        vectors = units.expand(-1, *x.shape)
    else:
        vectors = probes
    found = []
    for i, v in enumerate(vectors):
        keep = differentiable or i + 1 < len(vectors)
        (product,) = torch.autograd.grad((score * v).sum(), x, create_graph=differentiable, retain_graph=keep)
        found.append(sum_except_batch(product * v))
    products = torch.stack(found)
    return products.sum(0, keepdim=True) if probes is None else products
