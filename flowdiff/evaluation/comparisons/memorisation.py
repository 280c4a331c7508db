"""Whether samples are copies: how near they come to the training split, against how near the test split comes to it.

    d(x) = min over training samples t of ‖x − t‖/√dim,    memorised = share of samples with d ≤ q-quantile of d(test)

New samples of the data's law are memorised at a rate of q, the floor. Distances are taken in model space, not in
features, which may see what they like in a picture. Blurred samples come near, too: look before you accuse.
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

from flowdiff.evaluation.comparisons.base import Metric
from flowdiff.evaluation.features.samples import Real, Samples, paced
from flowdiff.registry import register

log = logging.getLogger(__name__)

DEVIATIONS = 5  # standard deviations above the floor at which the log warns


@register("comparison", "memorisation")
class Memorisation(Metric):
    """`memorised`, the share as above, and `train_distance`, the median of d, in units of [−1, 1].

    quantile: q of the test split's distances.  num_samples: of the samples and of the test split at most, evenly
    spaced; each is compared with the whole training split. Warns where the share is far above the floor.
    """

    def __init__(
        self, *, quantile: Annotated[float, Field(gt=0, lt=1)], num_samples: Annotated[int, Field(ge=2)]
    ) -> None:
        self.quantile = quantile
        self.num_samples = num_samples

    def __call__(self, samples: Samples, train: Real, test: Real) -> dict[str, float]:
        def of_test() -> dict[str, Tensor]:
            return {"nearest": self._nearest(test, train)}

        floor = test.kept("distances", of_test, train.key, self.num_samples)["nearest"]
        found = floor if samples is test else self._nearest(samples, train)
        near = floor.quantile(self.quantile)
        share, expected = ((d <= near).double().mean().item() for d in (found, floor))
        # The share of n new samples below the quantile of m others varies by this much.
        spread = math.sqrt(self.quantile * (1 - self.quantile) * (1 / len(found) + 1 / len(floor)))
        if share > expected + DEVIATIONS * spread:
            log.warning(
                "%.0f %% of the samples are closer to the training split than %.4g %% of the test split are: they are "
                "copies of training samples, or blurred.",
                *(100 * share, 100 * (1 - expected)),
            )
        return {"memorised": share, "train_distance": found.median().item()}

    def _nearest(self, samples: Samples, train: Real) -> Tensor:
        x = torch.cat([part.flatten(1).cpu() for part in samples.x(self.num_samples)])
        others = paced(train.x(), train.n, "nearest training samples")
        return nearest(x, (part.flatten(1).cpu() for part in others)) / math.sqrt(x.shape[1])


def nearest(x: Tensor, others: Iterable[Tensor]) -> Tensor:
    """Distance (n,), float64, of each x (n, d) from the nearest of others, batches (m, d)."""
    found = torch.full((len(x),), math.inf, dtype=torch.float64)
    for batch in others:
        closest = batch[torch.cdist(x, batch).argmin(1)]  # by products, which round: a copy would not be at 0
        found = torch.minimum(found, (x.double() - closest).norm(dim=1))
    return found
