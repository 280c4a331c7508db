"""The Fréchet distance between samples and the training split, in features."""

from __future__ import annotations

import logging

from flowdiff.evaluation.comparisons.base import Comparison
from flowdiff.evaluation.features.samples import Real, Samples
from flowdiff.evaluation.features.statistics import frechet_distance
from flowdiff.registry import register
from flowdiff.runs.undefined import TOO_FEW, Undefined

log = logging.getLogger(__name__)


@register("comparison", "frechet")
class Frechet(Comparison):
    """The Fréchet distance from the training split: `fid` in Inception features, else `fd_<extractor>`.

    d² = ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½)

    All samples are compared with the whole training split. Below num_features + 1 samples the covariance is singular
    and the distance is far from its limit: it is comparable only between equal numbers of samples. The log warns once.

    Source: Heusel et al., GANs trained by a two time-scale update rule converge to a local Nash equilibrium, 2017.
    """

    def __init__(self) -> None:
        self._warned: set[int] = set()

    def __call__(self, samples: Samples, train: Real, test: Real) -> dict[str, float]:
        name, features = samples.extractor.metric_name("fd"), samples.extractor.num_features
        if min(train.n, test.n if samples is test else 2) < 2:
            return {name: Undefined(TOO_FEW)}
        if samples.n <= features and samples.n not in self._warned:
            self._warned.add(samples.n)
            which, remedy = "samples", f"; set metrics.num_samples > {features} for a distance to report"
            if samples is test:
                which, remedy = "test samples, the floor", ""
            log.warning(
                "%s of %d %s: the covariance of %d features is singular below %d samples, and the distance "
                "is comparable only with distances of %d samples%s.",
                *(name, samples.n, which, features, features + 1, samples.n, remedy),
            )
        return {name: frechet_distance(samples.statistics, train.statistics)}
