"""The laws of a measurement: A is linear, its transpose belongs to it, and systems of A·Aᵀ are solved."""

from __future__ import annotations

import torch
from torch import Tensor

from flowdiff.diffusion.measurements.base import Measurement
from flowdiff.testing.compare import require_close


def check_measurement(measurement: Measurement) -> None:
    """Hold a measurement to every law of a measurement, in float64.

    Args:
        measurement: A and σ_y.

    Raises:
        AssertionError: the first law that is broken, by how much and where.
    """
    x, other = (_drawn((3, *measurement.shape), seed) for seed in (0, 1))
    y = _drawn(tuple(measurement(x).shape), 2)
    require_close(
        measurement(2 * x - 3 * other),
        2 * measurement(x) - 3 * measurement(other),
        "A·(2x − 3x') = 2·A·x − 3·A·x'",
        atol=1e-12,
    )
    require_close(
        (measurement(x) * y).flatten(1).sum(1),
        (x * measurement.transposed(y)).flatten(1).sum(1),
        "⟨A·x, y⟩ = ⟨x, Aᵀ·y⟩",
        atol=1e-12,
    )
    signal, noise = torch.tensor([0.5, 1.0, 2.0], dtype=y.dtype), torch.tensor([0.3, 1.0, 0.1], dtype=y.dtype)
    u = measurement.solved(y, signal, noise)
    sides = (-1, *[1] * (y.ndim - 1))
    back = signal.view(sides) * measurement(measurement.transposed(u)) + noise.view(sides) * u
    require_close(back, y, "(signal·A·Aᵀ + noise·I)·u = y for the u that is found", atol=1e-8)  # condition number ≤ 21
    alone = measurement(x[:1])
    require_close(alone, measurement(x)[:1], "a sample is measured as in a batch", atol=1e-12)


def _drawn(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
