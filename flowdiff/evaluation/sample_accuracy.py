"""Are samples of the class that was asked for? The share of them that the feature extractor's classifier agrees with.

Guidance trades it against the Fréchet distance: guided samples are clearer members of their class and less varied.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowdiff.evaluation.features.extractor import Extractor, extract


def sample_accuracy(extractor: Extractor, data: Any, x: Tensor, label: Tensor, batch_size: int) -> float:
    """Share of samples x (N, …) in model space that are classified as their label (N,), in [0, 1].

    The extractor is one with an `accuracy`, i.e. a classifier of these data, which is what real test samples reach.
    """
    found = [extractor.head(features).argmax(1).cpu() for features in extract(extractor, data, x, batch_size)]
    return (torch.cat(found) == label.cpu()).double().mean().item()
