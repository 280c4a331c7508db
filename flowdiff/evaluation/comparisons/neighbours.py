"""Which samples lie near real ones, and which real ones near samples, by balls that reach to a k-th neighbour.

    B(r) = {f: ‖f − r‖ ≤ distance from r to its k-th nearest neighbour in its own set}

    precision = share of samples in some B(real)        recall   = share of real samples in some B(sample)
    density   = mean number of B(real) around a sample, over k        coverage = share of B(real) that hold a sample

All four depend on the number of samples, so both sets are reduced to the same number; for the floors as well.
Sources: Kynkäänniemi et al., Improved precision and recall metric for assessing generative models, 2019; Naeem et al.,
Reliable fidelity and diversity metrics for generative models, 2020.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from flowdiff.data.readers import evenly
from flowdiff.evaluation.comparisons.base import Comparison
from flowdiff.evaluation.features.samples import Real, Samples, paced
from flowdiff.registry import register

CHUNK = 1000  # rows of a distance matrix in memory at once


@register("comparison", "precision_recall")
class PrecisionRecall(Comparison):
    """Precision and recall of samples, each in [0, 1], by balls B(r) that reach from r to its k-th neighbour.

    precision = share of samples in some B(real)
    recall = share of real samples in some B(sample)

    Args:
        neighbours: k ≥ 1.
        num_samples: at most so many samples of either set are compared, evenly spaced, ≥ 2.

    Source: Kynkäänniemi et al., Improved precision and recall metric for assessing generative models, 2019.
    """

    num_samples: int

    def __init__(self, *, neighbours: PositiveInt, num_samples: Annotated[int, Field(ge=2)]) -> None:
        self.neighbours = neighbours
        self.num_samples = num_samples

    def __call__(self, samples: Samples, train: Real, test: Real) -> dict[str, float]:
        real, fake = equally_many(train, samples, self.num_samples)
        return {
            "precision": inside(real, radii(real, self.neighbours), fake)[0].mean().item(),
            "recall": inside(fake, radii(fake, self.neighbours), real)[0].mean().item(),
        }


@register("comparison", "density_coverage")
class DensityCoverage(Comparison):
    """Density ≥ 0 and coverage in [0, 1] of samples, by balls B(r) that reach from r to its k-th neighbour.

    density = mean number of B(real) around a sample, over k
    coverage = share of B(real) that hold a sample

    Args:
        neighbours: k ≥ 1.
        num_samples: at most so many samples of either set are compared, evenly spaced, ≥ 2.

    Source: Naeem et al., Reliable fidelity and diversity metrics for generative models, 2020.
    """

    num_samples: int

    def __init__(self, *, neighbours: PositiveInt, num_samples: Annotated[int, Field(ge=2)]) -> None:
        self.neighbours = neighbours
        self.num_samples = num_samples

    def __call__(self, samples: Samples, train: Real, test: Real) -> dict[str, float]:
        real, fake = equally_many(train, samples, self.num_samples)
        _, balls, filled = inside(real, radii(real, self.neighbours), fake)
        return {"density": balls.mean().item() / self.neighbours, "coverage": filled.mean().item()}


def equally_many(train: Real, samples: Samples, most: int) -> tuple[Tensor, Tensor]:
    """Features of n real and n other samples, (n, d) each, less the real mean, which reduces rounding errors."""
    real, fake = train.features(most), samples.features(most)
    n = min(len(real), len(fake))
    real, fake = real[evenly(len(real), n)], fake[evenly(len(fake), n)]
    centre = real.mean(0)
    return (real - centre).double(), (fake - centre).double()


def radii(members: Tensor, k: int) -> Tensor:
    """Distance (n,) of each member (n, d) from its k-th nearest neighbour; from the farthest if there are fewer."""
    k = min(k, len(members) - 1)
    # The nearest one is the member itself.
    return torch.cat([rows.kthvalue(k + 1, dim=1).values for rows in distances(members, members)])


def inside(centres: Tensor, radius: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For points (m, d) and balls around centres (n, d) with radius (n,), three results in float64:

    whether a point is in some ball (m,), the number of balls around a point (m,), whether a ball holds a point (n,).
    """
    balls, filled = [], torch.zeros(len(centres), dtype=torch.bool)
    for rows in distances(points, centres):
        within = rows <= radius
        balls.append(within.sum(1))
        filled |= within.any(0)
    count = torch.cat(balls).double()
    return (count > 0).double(), count, filled.double()


def distances(a: Tensor, b: Tensor) -> Iterator[Tensor]:
    """Rows of the matrix of distances ‖aᵢ − bⱼ‖, chunk by chunk: a (n, d), b (m, d) → (≤ CHUNK, m) each."""
    return paced((torch.cdist(part, b) for part in a.split(CHUNK)), len(a), "neighbours of samples")
