"""The contract of what samples are compared in: features φ(x), (N, num_features), of x in [−1, 1].

A distance is named after its features, `fd_<name>`; only that in the Inception network's is called `fid`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


class Extractor(nn.Module, ABC):
    """φ: samples in model space [−1, 1], (N, C, H, W) or (N, D), to features (N, num_features).

    name: what a distance is called after.  head: linear classifier, φ to class scores, or None.  accuracy: of that
    classifier on the test split, in [0, 1], or None.  weight_hash, preprocessing: identify φ, and what it does to
    samples before; two distances compare only if both are the same.
    """

    name: str
    num_features: int
    head: nn.Module | None
    accuracy: float | None
    weight_hash: str
    preprocessing = "the data's levels"

    def metric(self, kind: str) -> str:
        """What a metric of some kind, `fd`, `kd` or `is`, is called in these features."""
        return f"{kind}_{self.name}"

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Features (N, num_features) of samples x."""


def extract(extractor: Extractor, data: Any, x: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Features of samples x (N, …) in model space, snapped to the data's levels, batch by batch.

    In float32 and on the extractor's own device, so that real and generated samples go through the same arithmetic.
    """
    device = next((p.device for p in extractor.parameters()), x.device)
    for part in x.split(batch_size):
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield extractor(data.quantize(part.detach().to(device, torch.float32)))
