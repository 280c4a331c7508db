"""The residual of the Fokker–Planck equation at every noise level: how far the densities are from one diffusion.

    R = a − b,    a = ∂_σ log p,    b = σ·(Δ log p + ‖∇log p‖²)            (flowdiff/diffusion/fokker_planck.py)
    r(σ) = √(E[R²] / (E[a²] + E[b²]))    over x = x0 + σ·noise of test samples x0

Both sides have the mean 0 under p_σ, since ∫∂_σ p = ∫Δp = 0, and both grow with 1/σ and √dim. So r has no unit and is
comparable over σ and over dimensions: 0 for densities of one diffusion, 1 if the two sides are unrelated, at most √2.
At σ far above the data a small r is no small error of D, which is x + σ²·score.

Δ log p is estimated with K ≥ 2 independent probes. The square of R is replaced by the mean over pairs of probes,
((Σ_k R_k)² − Σ_k R_k²)/(K(K − 1)), whose expectation is the square of the exact value, and so is that of b. The mean of
squares would count the variance of the estimate as a residual.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowdiff.data.base import Dataset
from flowdiff.data.readers import evenly
from flowdiff.diffusion.fokker_planck import residuals, signs
from flowdiff.diffusion.model import ConditionedDenoiser
from flowdiff.models.conditioning import Conditioning
from flowdiff.noise import generators, randn_like
from flowdiff.runs.health import Curve

TEST_SEED = 5
SAMPLES = 64  # test samples at each level, at most, evenly spaced
PROBES = 2


def residual_curve(denoiser: ConditionedDenoiser, data: Dataset, sigmas: list[float]) -> Curve:
    """r at each of the noise levels; NaN where it is not finite.

    Sample i has the same noise and the same probes at every level and in every run.

    Args:
        denoiser: a density that is twice differentiable.
        data: the data set in the model's space.
        sigmas: the noise levels, rising.
    """
    device = denoiser.sigma_data.device
    indices = evenly(len(data.test), SAMPLES)
    batch = data.test[indices]
    sources = generators(TEST_SEED, indices.tolist())
    with torch.no_grad():
        x0 = data.dequantize(batch.x, sources)
    noise = randn_like(x0.cpu(), sources).to(device)
    probes = signs(x0.cpu(), sources, PROBES).to(device)
    cond = denoiser.cond_of_batch(batch)
    values = []
    for sigma in sigmas:
        x = x0.to(device) + sigma * noise
        values.append(relative_residual(denoiser, x, x.new_full((len(x),), sigma), cond, probes))
    return Curve(tuple(sigmas), tuple(values))


def relative_residual(
    denoiser: ConditionedDenoiser, x: Tensor, sigma: Tensor, cond: Conditioning | None, probes: Tensor | None
) -> float:
    """r over samples x (B, …) at sigma (B,); NaN where it is not finite.

    Args:
        denoiser: a density that is twice differentiable.
        x: noised samples, distributed as p_σ.
        sigma: their noise levels.
        cond: their condition.
        probes: K ≥ 2 vectors of random signs for each sample, (K, B, …); None for the exact Δ log p.
    """
    with torch.compiler.set_stance("force_eager"):  # a compiled density cannot be differentiated twice
        residual = residuals(denoiser.log_prob, x, sigma, cond, probes=probes).double()  # (K, B)
        with torch.enable_grad():
            level = sigma.detach().requires_grad_(True)
            (slope,) = torch.autograd.grad(denoiser.log_prob(x.detach(), level, cond).sum(), level)
    left = slope.double()
    right = left - residual
    ratio = mean_square(residual) / (left.square().mean() + mean_square(right))
    # The mean over pairs may be slightly below 0 where the residual is about 0.
    return math.sqrt(max(float(ratio), 0.0)) if bool(ratio.isfinite()) else math.nan


def mean_square(estimates: Tensor) -> Tensor:
    """The mean over B of the squares of numbers of which K independent estimates are given, (K, B), without bias.

    A single estimate, K = 1, counts as exact.
    """
    count = len(estimates)
    if count == 1:
        return estimates.square().mean()
    return ((estimates.sum(0).square() - estimates.square().sum(0)) / (count * (count - 1))).mean()
