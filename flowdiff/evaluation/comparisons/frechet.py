"""The Fréchet distance of samples from the training split, in features: `fid` in Inception's, else `fd_<extractor>`."""

from __future__ import annotations

import logging

from flowdiff.evaluation.comparisons.base import Metric
from flowdiff.evaluation.features.samples import Real, Samples
from flowdiff.evaluation.features.statistics import frechet_distance
from flowdiff.registry import register

log = logging.getLogger(__name__)


@register("comparison", "frechet")
class Frechet(Metric):
    """d² of flowdiff/evaluation/features/statistics.py, all samples against the whole training split.

    Below num_features + 1 samples a covariance is singular: the number is that of a flatter Gaussian, far from its
    limit, and compares with those of equally many samples only, which is said once.
    """

    def __init__(self) -> None:
        self._said: set[int] = set()

    def __call__(self, samples: Samples, train: Real, test: Real) -> dict[str, float]:
        name, features = samples.extractor.metric("fd"), samples.extractor.num_features
        if samples.n <= features and samples.n not in self._said:
            self._said.add(samples.n)
            which, remedy = "samples", f"; take metrics.num_samples > {features} for one to report"
            if samples is test:
                which, remedy = "test samples, the floor", ""
            log.warning(
                "%s of %d %s: the covariance of %d features is singular below %d samples, and the distance "
                "compares only with others of %d%s.",
                *(name, samples.n, which, features, features + 1, samples.n, remedy),
            )
        return {name: frechet_distance(samples.statistics, train.statistics)}
