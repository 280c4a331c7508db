"""Features of vectors: the vectors themselves."""

from __future__ import annotations

from torch import Tensor

from flowdiff.evaluation.features.extractor import Extractor


class IdentityFeatures(Extractor):
    """The vectors themselves, φ(x) = x; a Fréchet distance compares only their first two moments.

    Args:
        num_features: dimension of the vectors.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.name = "data"
        self.num_features = num_features
        self.head = None
        self.accuracy = None
        self.weight_hash = "identity"

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)
