"""Generate: n samples from a denoiser, a sampler and a schedule, in batches of any size.

Sample i has its own random generator, seeded by (seed, i): it is the same for every batch size and on every device. It
starts either from noise, x = σ_max·N(0, I), or from a sample of a density, x ~ p_θ(·|σ_start, c), at any noise level;
σ_start = σ_min is one-shot sampling with a flow, followed by a single denoising step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flowdiff.diffusion.guidance.base import Start
from flowdiff.diffusion.samplers.base import DenoiserLike, Sampler
from flowdiff.diffusion.schedules.base import Callback, Schedule
from flowdiff.errors import ConfigurationError, NotADensity, nearest
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.networks.base import Density
from flowdiff.noise import generators, randn

Progress = Callable[[int, int], None]
"""(samples drawn so far, number of samples): called after every batch."""


@torch.no_grad()
def generate(
    denoiser: DenoiserLike,
    sampler: Sampler,
    schedule: Schedule | None,
    shape: Sequence[int],
    *,
    n: int,
    seed: int,
    cond_of: Callable[[Sequence[int]], Conditioning | None] | None = None,
    start: str = "noise",
    sigma_start: float | None = None,
    batch_size: int = 64,
    sigmas: Tensor | None = None,
    start_density: Start | None = None,
    start_cond_of: Callable[[Sequence[int]], Conditioning | None] | None = None,
    indices: range | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Draw n samples, (n, *shape), on `device`.

    Args:
        denoiser: D, with its network, from which start=flow draws.
        sampler: the sampler.
        schedule: makes the grid of noise levels; None if `sigmas` is given.
        shape: shape of one sample.
        n: number of samples, ≥ 0.
        seed: sample i is a function of (seed, i).
        cond_of: sample indices → their Conditioning or None; by default no condition.
        start: `noise`, x = σ_max·N(0, I), or `flow`, x ~ start_density.
        sigma_start: where a flow starts, in (0, σ_max] of the schedule, by default its σ_min; the number of steps does
            not depend on it.
        batch_size: number of samples per batch, ≥ 1.
        sigmas: a grid, (N+1,), instead of the schedule's; sampling starts at its first level.
        start_density: what start=flow draws from; by default the denoiser's network, which must be a density.
        start_cond_of: sample indices → the Conditioning that start_density reads; by default that of the denoiser.
        indices: which of the samples 0 … n − 1 to draw, so that processes can share them; by default all.
        device: where the samples are drawn.
        progress: called after every batch.
        callback: called in every step of every batch.

    Raises:
        ConfigurationError: the start is unknown or outside the schedule, or there is no grid or two.
        NotADensity: start=flow with a network that is not a density.
    """
    levels = _grid(sampler, schedule, sigmas, start, sigma_start)
    density = _density(denoiser, start_density) if start == "flow" else None
    batches = []
    indices = range(n) if indices is None else indices
    for first in range(0, len(indices), batch_size):
        batch = indices[first : first + batch_size]
        cond = None if cond_of is None else cond_of(batch)
        sources = generators(seed, batch)
        if density is None:
            x = levels[0].item() * randn((len(batch), *shape), sources, device=device)  # (B, *shape)
        else:
            sigma = torch.full((len(batch),), levels[0].item(), device=device)
            x = density.sample(sigma, cond if start_cond_of is None else start_cond_of(batch), sources)
        batches.append(sampler(denoiser, x, levels, cond, sources, callback))
        if progress is not None:
            progress(first + len(batch), len(indices))
    return torch.cat(batches) if batches else torch.empty(0, *shape, device=device)


def _grid(
    sampler: Sampler, schedule: Schedule | None, sigmas: Tensor | None, start: str, sigma_start: float | None
) -> Tensor:
    """The grid of noise levels, the start first."""
    if start not in ("noise", "flow"):
        raise ConfigurationError(f"start={start} is unknown: {nearest(start, ('noise', 'flow'))}.")
    if start == "noise" and sigma_start is not None:
        raise ConfigurationError(
            f"sigma_start={sigma_start:g} needs start=flow: noise starts at the schedule's sigma_max."
        )
    if sigmas is not None:
        if sigma_start is not None:
            raise ConfigurationError(
                "sigma_start and sigmas were both given: a grid starts at its own first level; leave sigma_start out."
            )
        return torch.as_tensor(sigmas, dtype=torch.float64)
    if schedule is None:
        raise ConfigurationError("neither schedule nor sigmas was given: sampling needs one of them for its grid.")
    if start == "noise":
        return schedule(sampler.num_steps)
    return schedule(sampler.num_steps, schedule.sigma_min if sigma_start is None else sigma_start)


def _density(denoiser: DenoiserLike, start_density: Start | None) -> Start:
    if start_density is not None:
        return start_density
    density = denoiser.network
    if not isinstance(density, Density):
        raise NotADensity(
            f"start=flow draws from a density, but {type(density).__name__} is not a density: set start=noise or"
            " network=score_flow."
        )
    return density
