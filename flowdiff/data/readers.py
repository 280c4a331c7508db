"""Reading a split in order, or evenly spaced samples of it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from flowdiff.data.base import DataModule, Split


def split_batches(
    data: DataModule, split: Split, batch_size: int, most: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """(x, labels) of a split of `data` in order, or of `most` evenly spaced samples; x at its levels' midpoints."""
    for indices in evenly(len(split), most).split(batch_size):
        batch = split[indices]
        yield data.centre(batch.x), batch.label


def evenly(n: int, most: int | None) -> Tensor:
    """Positions 0 … n−1, or `most` evenly spaced ones of them if there are more."""
    return torch.linspace(0, n - 1, n if most is None else min(n, most), dtype=torch.float64).round().long()
