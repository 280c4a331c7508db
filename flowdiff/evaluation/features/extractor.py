"""The contract of feature extractors: φ(x), (N, num_features), of samples x in [−1, 1].

A distance is named after its features, `fd_<name>`; in the Inception network's features it is called `fid`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from flowdiff.data.base import DataModule
from flowdiff.errors import ConfigurationError


class Extractor(nn.Module, ABC):
    """Features φ(x), (N, num_features), of samples x in model space [−1, 1], (N, C, H, W) or (N, D).

    Two distances are comparable only if their extractors have the same weight_hash and preprocessing.

    Attributes:
        name: suffix of the names of distances in these features.
        num_features: number of features.
        head: linear classifier of the features; None if there is none.
        accuracy: accuracy of that classifier on the test split, in [0, 1]; None if it is not known.
        weight_hash: hash of the weights.
        preprocessing: how samples are prepared before φ.
    """

    name: str
    num_features: int
    head: nn.Linear | None
    accuracy: float | None
    weight_hash: str
    preprocessing = "the data's levels"

    def metric_name(self, kind: str) -> str:
        """The name of the metric `fd`, `kd` or `is` in these features."""
        return f"{kind}_{self.name}"

    def class_scores(self, features: Tensor) -> Tensor:
        """Scores (N, C) of the classes, before the softmax, of features (N, num_features)."""
        if self.head is None:
            raise ConfigurationError(f"the features {self.name!r} have no classifier: take metrics=inception.")
        return self.head(features.to(self.head.weight.device))

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Features (N, num_features) of samples x."""


def extract(extractor: Extractor, data: DataModule, x: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Features of samples x (N, …) in model space, snapped to the data's levels, batch by batch.

    Computed in float32 on the extractor's device, so that real and generated samples go through the same arithmetic.
    """
    device = next((p.device for p in extractor.parameters()), x.device)
    for part in x.split(batch_size):
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield extractor(data.quantize(part.detach().to(device, torch.float32)))
