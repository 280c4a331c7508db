"""Likelihood of any denoiser by its probability-flow ODE, whose solution takes x from σ_min to noise at σ_max.

    dx/dτ = x − D(x, σ),    d log p/dτ = −(dim − tr ∂D/∂x),    τ = ln σ
    log p(x) = log N(x(σ_max); 0, σ_max²) + ∫ (dim − tr ∂D/∂x) dτ

It is solved for y = x/s, s² = σ² + σ_data², and for a, the difference of the integral from that of a Gaussian of size
σ_data. Both are constant if the data are such a Gaussian:

    dy/dτ = (x − D)/s − y·σ²/s²,    da/dτ = dim·σ_data²/s² − tr ∂D/∂x,    integral = a + dim·ln(s_max/s_min)

The trace is estimated by tr J ≈ vᵀJv with v of random signs, the same ones along the whole solution (Hutchinson), or
computed exactly with one derivative per dimension.

Sources: Song et al., Score-based generative modeling through stochastic differential equations, 2021; Grathwohl et al.,
FFJORD, 2019.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flowdiff.data.base import Dataset
from flowdiff.diffusion.model import ConditionedDenoiser
from flowdiff.evaluation import ranks
from flowdiff.evaluation.densities.likelihood import Likelihood, mean_and_error, per_dimension
from flowdiff.evaluation.features.samples import paced
from flowdiff.models.conditioning import Conditioning
from flowdiff.noise import generators
from flowdiff.shapes import append_dims, sum_except_batch

log = logging.getLogger(__name__)


class Solution(NamedTuple):
    """How the ODE is solved: from sigma_min to sigma_max, in adaptive steps (dopri5) with tolerances on y and a.

    Args:
        sigma_min: noise level of the samples whose likelihood is computed, > 0.
        sigma_max: noise level at which x is nearly N(0, sigma_max²).
        rtol: relative tolerance, > 0.
        atol: absolute tolerance, ≥ 0.
        probes: random vectors of the trace's estimate, ≥ 1; None for the exact trace.
    """

    sigma_min: float
    sigma_max: float
    rtol: float
    atol: float
    probes: int | None


def ode_bits_per_dim(
    denoiser: ConditionedDenoiser, data: Dataset, solution: Solution, *, seed: int, batch_size: int
) -> Likelihood:
    """Negative log-likelihood of every test sample by the ODE, dequantised as for the exact density.

    The dequantisation and the random signs of sample i depend on (seed, i) only.
    """
    device = denoiser.sigma_data.device
    positions = ranks.mine(torch.arange(len(data.test)))

    def log_probs() -> Iterator[Tensor]:
        for indices in positions.split(batch_size):
            batch = data.test[indices]
            sources = generators(seed, indices.tolist())
            x = data.dequantize(batch.x, sources).to(device)
            yield ode_log_prob(denoiser, x, solution, denoiser.cond_of_batch(batch), sources).double().cpu()

    mine = torch.cat(list(paced(log_probs(), len(positions), "likelihood by the ODE")))
    metric, values = per_dimension(ranks.gather(mine, len(data.test)), math.prod(data.shape), data.levels)
    return Likelihood(metric, *mean_and_error(values), len(values))


def ode_log_prob(
    denoiser: ConditionedDenoiser,
    x: Tensor,
    solution: Solution,
    cond: Conditioning | None,
    sources: Sequence[torch.Generator],
) -> Tensor:
    """log p(x) in nats (B,) of x (B, …) at σ_min; the signs of sample i come from sources[i].

    NaN, with a warning in the log, if the solver gives up because the denoiser is not finite or far from smooth.
    """
    from torchdiffeq import odeint  # imports scipy, which is slow

    dim = x[0].numel()
    sigma_data = denoiser.sigma_data.double()
    tau = torch.tensor([math.log(solution.sigma_min), math.log(solution.sigma_max)], dtype=torch.float64)

    def scale(sigma: float | Tensor) -> Tensor:
        return (sigma**2 + sigma_data**2).sqrt()

    probes = _probes(x, solution.probes, sources)

    def slope(tau: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        sigma = float(tau.exp())
        s = float(scale(sigma))
        here = state[0] * s
        denoised, trace = _denoised_and_trace(denoiser, here, sigma, cond, probes)
        return (here - denoised) / s - state[0] * (sigma / s) ** 2, dim * float(sigma_data / s) ** 2 - trace

    start = (x / scale(solution.sigma_min).to(x), x.new_zeros(len(x)))
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # compiled code is not differentiated twice
            y, a = (path[-1] for path in odeint(slope, start, tau.to(x.device), rtol=solution.rtol, atol=solution.atol))
    except AssertionError as error:  # "underflow in dt"
        log.warning("no likelihood of %d samples by the ODE: the solver gave up (%s).", len(x), error)
        return x.new_full((len(x),), math.nan)
    x_max = y * scale(solution.sigma_max).to(y)
    log_noise = -0.5 * sum_except_batch((x_max / solution.sigma_max) ** 2)
    log_noise -= dim * (math.log(solution.sigma_max) + 0.5 * math.log(2 * math.pi))
    return log_noise + a + dim * (scale(solution.sigma_max) / scale(solution.sigma_min)).log().to(a)


def _probes(x: Tensor, probes: int | None, sources: Sequence[torch.Generator]) -> list[Tensor]:
    """Vectors v like x such that vᵀJv has the mean tr J; for None the unit vectors times √dim, whose mean is exact."""
    if probes is not None:
        signs = [torch.randint(0, 2, (probes, *x.shape[1:]), generator=source) for source in sources]
        return list((2 * torch.stack(signs, 1) - 1).to(x))
    dim = x[0].numel()
    units = math.sqrt(dim) * torch.eye(dim, dtype=x.dtype, device=x.device)
    return [unit.view(x.shape[1:]).expand_as(x) for unit in units]


def _denoised_and_trace(
    denoiser: ConditionedDenoiser, x: Tensor, sigma: float, cond: Conditioning | None, probes: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """D, like x, and the mean of vᵀ(∂D/∂x)v over the probes (B,)."""
    sigmas = x.new_full((len(x),), sigma)
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        if denoiser.is_density:  # its D has no graph back to x in eval mode, its log-density has one
            (score,) = torch.autograd.grad(denoiser.log_prob(x, sigmas, cond).sum(), x, create_graph=True)
            denoised = x + append_dims(sigmas**2, x.ndim) * score
        else:
            denoised = denoiser(x, sigmas, cond)
        total = x.new_zeros(len(x))
        for i, v in enumerate(probes):
            (row,) = torch.autograd.grad((denoised * v).sum(), x, retain_graph=i + 1 < len(probes))
            total += sum_except_batch(row * v)
    return denoised.detach(), total / len(probes)
