"""Random numbers that belong to samples: sample i of seed s is the same in every batch size and on every worker."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator] | None


def generators(seed: int, indices: Iterable[int], device: torch.device | str = "cpu") -> list[torch.Generator]:
    """One generator per sample index i, seeded by (seed, i) alone."""
    return [torch.Generator(device).manual_seed(_mix(seed, index)) for index in indices]


def step_generator(seed: int, *counters: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The generator of one training step: seeded by (seed, step, rank, …), so that a resumed run draws the same."""
    for counter in counters:
        seed = _mix(seed, counter)
    return torch.Generator(device).manual_seed(seed)


def randn(
    shape: Sequence[int],
    generator: Generators = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Standard normal numbers of `shape` (B, …); a sequence of B generators draws each sample from its own."""
    shape = tuple(shape)
    if generator is None or isinstance(generator, torch.Generator):
        source = generator.device if generator is not None else device
        return torch.randn(shape, generator=generator, device=source, dtype=dtype).to(device)
    if len(generator) != shape[0]:
        raise ValueError(f"{len(generator)} generators were given for a batch of {shape[0]}: give one per sample.")
    rows = [torch.randn(shape[1:], generator=g, device=g.device, dtype=dtype) for g in generator]
    return torch.stack(rows).to(device)


def randn_like(x: Tensor, generator: Generators = None) -> Tensor:
    """Standard normal numbers of the shape, dtype and device of x (B, …)."""
    return randn(x.shape, generator, device=x.device, dtype=x.dtype)


def _mix(seed: int, counter: int) -> int:
    """Hash two integers to a well-spread 63-bit seed (the splitmix64 finaliser, Steele et al., 2014)."""
    z = (seed * 0x9E3779B97F4A7C15 + counter * 0xD1B54A32D192ED03 + 0x632BE59BD9B4E019) & (2**64 - 1)
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return (z ^ (z >> 31)) >> 1
