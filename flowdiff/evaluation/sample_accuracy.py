"""The share of samples to which the feature extractor's classifier gives the requested class.

Guidance trades it against the Fréchet distance: guided samples are clearer members of their class, and vary less.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flowdiff.data.base import DataModule
from flowdiff.evaluation.features.extractor import Extractor, extract


def sample_accuracy(extractor: Extractor, data: DataModule, x: Tensor, label: Tensor, batch_size: int) -> float:
    """Share, in [0, 1], of samples x (N, …) in model space that the extractor classifies as their label (N,).

    The extractor must contain a classifier of these data. Its `accuracy` is this share for real test samples.
    """
    predicted = [
        extractor.class_scores(features).argmax(1).cpu() for features in extract(extractor, data, x, batch_size)
    ]
    return (torch.cat(predicted) == label.cpu()).double().mean().item()
