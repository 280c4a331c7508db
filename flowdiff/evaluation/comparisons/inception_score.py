"""The Inception score, which grows with the certainty of a classifier and with the number of classes it predicts."""

from __future__ import annotations

import math
import statistics

import torch
from pydantic import PositiveInt

from flowdiff.data.base import Dataset
from flowdiff.errors import ConfigurationError
from flowdiff.evaluation.comparisons.base import Comparison
from flowdiff.evaluation.features.samples import Real, Samples
from flowdiff.registry import register


@register("comparison", "inception_score")
class InceptionScore(Comparison):
    """The Inception score of images: `is` by the Inception network, else `is_<extractor>`.

    IS = exp E_x KL(p(c|x) ‖ p(c))

    It lies between 1 and the number of classes, and is biased upward by few samples.

    Args:
        splits: number of random parts of the samples over which the score is averaged, ≥ 1.

    Raises:
        ConfigurationError: `check`: the data are vectors.

    Source: Salimans et al., Improved techniques for training GANs, 2016.
    """

    def __init__(self, *, splits: PositiveInt) -> None:
        self.splits = splits

    def check(self, data: Dataset) -> None:
        if len(data.shape) != 3:
            raise ConfigurationError(
                f"metrics.compare.inception_score needs a classifier of images, and dataset={data.name} has vectors: "
                "take metrics=vectors."
            )

    def __call__(self, samples: Samples, train: Real, test: Real) -> dict[str, float]:
        order = torch.randperm(samples.n, generator=torch.Generator().manual_seed(0))
        features = samples.features()[order]
        with torch.no_grad():
            parts = [samples.extractor.class_scores(f).cpu() for f in features.split(1000)]
        log_p = torch.cat(parts).double().log_softmax(1)  # (n, C)
        scores = []
        for part in log_p.tensor_split(min(self.splits, samples.n)):
            log_marginal = part.logsumexp(0) - math.log(len(part))
            scores.append((part.exp() * (part - log_marginal)).sum(1).mean().exp().item())
        return {samples.extractor.metric_name("is"): statistics.fmean(scores)}
