"""Generate: n samples from a denoiser, a sampler and a schedule, in batches of any size.

Sample i has a random generator of its own, seeded by (seed, i): it is the same in every batch size and on
every device. It starts either from noise, x = σ_max·N(0, I), or from a density's own sample,
x ~ p_θ(·|σ_start, c), anywhere on the way down; at σ_start = σ_min that is one-shot sampling with a flow,
cleaned by a single denoising step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from flowdiff.diffusion.samplers.base import Callback, Sampler
from flowdiff.diffusion.schedules import Schedule
from flowdiff.errors import ConfigurationError, NotADensity, nearest
from flowdiff.models.conditioning import Conditioning
from flowdiff.noise import generators, randn

Progress = Callable[[int, int], None]
"""(samples done, samples in all): called after every batch."""


class CountCalls:
    """A denoiser around a denoiser that counts how often it is asked.

    calls: batches evaluated; rows: samples evaluated, so that rows/n is the number of function evaluations
    per sample (wrapped *inside* guidance, which evaluates two rows for a sample).
    """

    def __init__(self, denoiser: Callable[..., Tensor]):
        self.denoiser = denoiser
        self.calls = 0
        self.rows = 0

    def __call__(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        self.calls += 1
        self.rows += len(x)
        return self.denoiser(x, sigma, cond)

    @property
    def network(self) -> Any:
        """The network of the denoiser inside."""
        return self.denoiser.network


@torch.no_grad()
def generate(
    denoiser: Callable[[Tensor, Tensor, Conditioning | None], Tensor],
    sampler: Sampler,
    schedule: Schedule | None,
    shape: Sequence[int],
    *,
    n: int,
    seed: int,
    cond_of: Callable[[Sequence[int]], Conditioning | None] | None = None,
    start: Literal["noise", "flow"] = "noise",
    sigma_start: float | None = None,
    batch_size: int = 64,
    sigmas: Tensor | None = None,
    start_density: Any = None,
    indices: range | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Draw n samples: (n, *shape), on `device`.

    shape: of one sample.  cond_of: sample indices -> their Conditioning or None.
    start: `noise`, x = σ_max·N(0, I), or `flow`, x ~ start_density (by default the denoiser's network).
    sigma_start: where a flow starts, in (0, σ_max] of the schedule, by default its σ_min; as many steps are
    taken from there as would be from σ_max.
    sigmas: a grid of one's own instead of the schedule's, started from at its first level.
    indices: which of the samples 0 … n − 1 to draw, None for all: processes may share them.
    progress: called after every batch.  callback: the sampler's, called in every step of every batch.
    Raises ConfigurationError for a start outside the schedule, NotADensity for start=flow with a network that
    is no density.
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
            x = density.sample(sigma, cond, sources)
        batches.append(sampler(denoiser, x, levels, cond, sources, callback))
        if progress is not None:
            progress(first + len(batch), len(indices))
    return torch.cat(batches) if batches else torch.empty(0, *shape, device=device)


def _grid(
    sampler: Sampler, schedule: Schedule | None, sigmas: Tensor | None, start: str, sigma_start: float | None
) -> Tensor:
    """The noise levels to walk down, the start first."""
    if start not in ("noise", "flow"):
        raise ConfigurationError(f"start={start} is unknown: {nearest(start, ('noise', 'flow'))}.")
    if start == "noise" and sigma_start is not None:
        raise ConfigurationError(
            f"sigma_start={sigma_start:g} needs start=flow: noise starts at the schedule's sigma_max."
        )
    if sigmas is not None:
        if sigma_start is not None:
            raise ConfigurationError("sigma_start and sigmas were both given: a grid starts at its own first level.")
        return torch.as_tensor(sigmas, dtype=torch.float64)
    if start == "noise":
        return schedule(sampler.num_steps)
    return schedule(sampler.num_steps, schedule.sigma_min if sigma_start is None else sigma_start)


def _density(denoiser: Any, start_density: Any) -> Any:
    density = denoiser.network if start_density is None else start_density
    if not hasattr(density, "sample"):
        raise NotADensity(
            f"start=flow draws from a density, and {type(density).__name__} is none: take start=noise or"
            " network=score_flow."
        )
    return density
