"""Whether samples are copies: the distances from samples to the training split, against those from the test split.

    d(x) = min over training samples t of ‖x − t‖/√dim,    memorised = share of samples with d ≤ q-quantile of d(test)

For new samples from the distribution of the data this share is q, the floor. Distances are taken in model space,
because features may ignore parts of a picture. Blurred samples are close to training samples too: look at them before
concluding that they are copies.
Source: Meehan, Chaudhuri & Dasgupta, A non-parametric test to detect data-copying in generative models, 2020.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from flowdiff.evaluation.comparisons.base import Comparison
from flowdiff.evaluation.features.samples import Real, Samples, paced
from flowdiff.registry import register

log = logging.getLogger(__name__)

DEVIATIONS = 5  # the log warns at so many standard deviations above the floor


@register("comparison", "memorisation")
class Memorisation(Comparison):
    """The share of samples that are copies, `memorised`, and their median distance from the data, `train_distance`.

    d(x) = min over training samples t of ‖x − t‖/√dim,    memorised = share of samples with d ≤ q-quantile of d(test)

    d is in the units of [−1, 1]. The floor of `memorised` is q; the log warns if the share is far above it.

    Args:
        quantile: q of the distances of the test split, in (0, 1).
        num_samples: at most so many samples, and test samples, are compared with the whole training split, evenly
            spaced, ≥ 2.

    Source: Meehan, Chaudhuri & Dasgupta, A non-parametric test to detect data-copying in generative models, 2020.
    """

    def __init__(
        self, *, quantile: Annotated[float, Field(gt=0, lt=1)], num_samples: Annotated[int, Field(ge=2)]
    ) -> None:
        self.quantile = quantile
        self.num_samples = num_samples

    def __call__(self, samples: Samples, train: Real, test: Real) -> dict[str, float]:
        kept = test.kept("distances", lambda: {"nearest": self._nearest(test, train)}, train.key, self.num_samples)
        floor = kept["nearest"]
        found = floor if samples is test else self._nearest(samples, train)
        near = floor.quantile(self.quantile)
        share, expected = ((d <= near).double().mean().item() for d in (found, floor))
        # The standard deviation of the share of n new samples below the quantile of m others.
        spread = math.sqrt(self.quantile * (1 - self.quantile) * (1 / len(found) + 1 / len(floor)))
        if share > expected + DEVIATIONS * spread:
            log.warning(
                "%.0f %% of the samples are closer to the training split than %.4g %% of the test split: they are "
                "copies of training samples, or blurred.",
                *(100 * share, 100 * (1 - expected)),
            )
        return {"memorised": share, "train_distance": found.median().item()}

    def _nearest(self, samples: Samples, train: Real) -> Tensor:
        x = torch.cat([part.flatten(1).cpu() for part in samples.x(self.num_samples)])
        others = paced(train.x(), train.n, "nearest training samples")
        return nearest(x, (part.flatten(1).cpu() for part in others)) / math.sqrt(x.shape[1])


def nearest(x: Tensor, others: Iterable[Tensor]) -> Tensor:
    """Distance (n,), float64, from each x (n, d) to its nearest neighbour in `others`, batches (m, d)."""
    found = torch.full((len(x),), math.inf, dtype=torch.float64)
    for batch in others:
        closest = batch[torch.cdist(x, batch).argmin(1)]  # cdist uses products, which round: a copy would not be at 0
        found = torch.minimum(found, (x.double() - closest).norm(dim=1))
    return found
