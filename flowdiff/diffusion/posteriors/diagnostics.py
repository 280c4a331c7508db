"""What Markov chains are worth: whether they agree, and how many independent draws they amount to.

Every chain is split in halves, so that a drift within a chain counts as disagreement. With m half chains of n states, W
the mean of their variances and B/n the variance of their means,

    R̂² = (W·(n − 1)/n + B/n)/W,    effective = m·n/τ,    τ = −1 + 2·Σ_t P_t,

where P_t = ρ_{2t} + ρ_{2t+1} are sums of neighbouring autocorrelations, cut at the first that is negative and made
decreasing, and ρ_t is estimated from all half chains together.

Sources: Gelman et al., Bayesian data analysis, 2013, section 11.4; Geyer, Practical Markov chain Monte Carlo, 1992;
Vehtari, Gelman, Simpson, Carpenter, Bürkner, Rank-normalization, folding, and localization, 2021, section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor


def split_rhat(x: Tensor) -> Tensor:
    """R̂ of each number of chains x (S, C, …) of S ≥ 4 states: shape x.shape[2:], float64; 1 where nothing varies."""
    halves = _halves(x)
    n = len(halves)
    within = halves.var(0).mean(0)
    between = halves.mean(0).var(0)  # B/n
    return torch.where(within > 0, ((within * (n - 1) / n + between) / within.clamp_min(1e-300)).sqrt(), 1.0)


def effective_size(x: Tensor) -> Tensor:
    """Effective number of independent states of chains x (S, C, …), S ≥ 4: shape x.shape[2:], float64.

    At most S·C·log₁₀(S·C), which is for chains that are better than independent.
    """
    halves = _halves(x)
    n, m = halves.shape[:2]
    centred = halves - halves.mean(0)
    # Autocovariances of all lags at once: a product of Fourier transforms of the chain and as many zeros.
    spectrum = torch.fft.rfft(centred, n=2 * n, dim=0)
    covariance = torch.fft.irfft(spectrum.abs() ** 2, n=2 * n, dim=0)[:n] / n  # (n, m, …)
    within = halves.var(0).mean(0)
    total = within * (n - 1) / n + halves.mean(0).var(0)
    rho = 1 - (within - covariance.mean(1) * n / (n - 1)) / total.clamp_min(1e-300)
    rho[0] = 1.0
    pairs = rho[: n // 2 * 2].unflatten(0, (-1, 2)).sum(1)
    kept = (pairs > 0).cumprod(0).bool()
    falling = torch.where(kept, pairs, torch.inf).cummin(0).values
    tau = -1 + 2 * torch.where(kept, falling, 0.0).sum(0)
    size = n * m
    most = torch.tensor(float(size)).log10()
    return torch.where(total > 0, size / tau.clamp_min(1 / most), float(size))


def _halves(x: Tensor) -> Tensor:
    """The half chains, (S/2, 2C, …) float64."""
    n = len(x) // 2
    return torch.cat([x[:n], x[len(x) - n :]], 1).double()
