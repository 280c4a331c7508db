"""Reading raw samples as model-space samples: centred, dequantised, in batches, evenly spaced."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from flowdiff.data.encoded import Encoded


def centred(values: Any, x_raw: Tensor) -> Tensor:
    """Raw samples in model space without dequantisation noise: x = 2 (k + ½) / levels − 1; vectors as they are.

    values: Pixels, Vectors, or a data set of them.
    """
    unused = torch.Generator(x_raw.device)  # the noise that `to_model` may add is removed again by `quantize`
    return values.quantize(values.to_model(x_raw, generator=unused))


def dequantised(data: Any, x_raw: Tensor, sources: Sequence[torch.Generator]) -> Tensor:
    """Raw samples in model space, each image spread uniformly over its grey levels by its own generator; encoded, by
    the numbers of the same, where the data are.
    """
    if isinstance(data, Encoded):
        return data.first_stage.encode(dequantised(data.pixels, x_raw, sources), sources)
    x = centred(data, x_raw)
    if data.levels is None:
        return x
    u = torch.stack([torch.rand(x.shape[1:], generator=source) for source in sources]).to(x.device)  # (B, C, H, W)
    return x + (2 * u - 1) / data.levels


def split_batches(data: Any, split: Any, batch_size: int, most: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """A split in order, or `most` samples of it: images at the centre of their grey level (or vectors), and labels."""
    for indices in evenly(len(split), most).split(batch_size):
        batch = split[indices]
        yield centred(data, batch.x), batch.label


def evenly(n: int, most: int | None) -> Tensor:
    """Positions 0 … n−1, or where these are more than `most`, that many of them, evenly spaced."""
    return torch.linspace(0, n - 1, n if most is None else min(n, most), dtype=torch.float64).round().long()
