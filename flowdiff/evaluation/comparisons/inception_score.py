"""The Inception score: exp E_x KL(p(c|x) ‖ p(c)), the more the surer a classifier is and the more classes it sees."""

from __future__ import annotations

import math
import statistics
from typing import Any

import torch
from pydantic import PositiveInt

from flowdiff.errors import ConfigurationError
from flowdiff.evaluation.comparisons.base import Metric
from flowdiff.evaluation.features.samples import Real, Samples
from flowdiff.registry import register


@register("comparison", "inception_score")
class InceptionScore(Metric):
    """Mean of the score over `splits` random parts: `is` by the Inception network, else `is_<extractor>`.

    Between 1 and the number of classes, biased upward by few samples. Needs images.

    Source: Salimans et al., Improved techniques for training GANs, 2016.
    """

    def __init__(self, *, splits: PositiveInt) -> None:
        self.splits = splits

    def check(self, data: Any) -> None:
        if len(data.shape) != 3:
            raise ConfigurationError(
                f"metrics.compare.inception_score needs a classifier of images, and dataset={data.name} has vectors: "
                "take metrics=vectors."
            )

    def __call__(self, samples: Samples, train: Real, test: Real) -> dict[str, float]:
        order = torch.randperm(samples.n, generator=torch.Generator().manual_seed(0))
        features = samples.features()[order]
        with torch.no_grad():
            head = samples.extractor.head
            parts = [head(f.to(head.weight.device)).cpu() for f in features.split(1000)]
        log_p = torch.cat(parts).double().log_softmax(1)  # (n, C)
        scores = []
        for part in log_p.tensor_split(min(self.splits, samples.n)):
            log_marginal = part.logsumexp(0) - math.log(len(part))
            scores.append((part.exp() * (part - log_marginal)).sum(1).mean().exp().item())
        return {samples.extractor.metric("is"): statistics.fmean(scores)}
