"""Which samples lie among the real ones, and the other way round, by balls that reach to a k-th neighbour.

    B(r) = {f: ‖f − r‖ ≤ distance from r to its k-th nearest neighbour in its own set}

    precision = share of samples in some B(real)        recall   = share of real ones in some B(sample)
    density   = mean number of B(real) a sample is in, over k        coverage = share of B(real) with a sample in it

Both sets are cut to the same number of members, on which all four depend; so is the test split for the floors.
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
from flowdiff.evaluation.comparisons.base import Metric
from flowdiff.evaluation.features.samples import Real, Samples, paced
from flowdiff.registry import register

CHUNK = 1000  # rows of a distance matrix that are held at once


@register("comparison", "precision_recall")
class PrecisionRecall(Metric):
    """`precision` and `recall` ∈ [0, 1]; neighbours: k.  num_samples: of both sets at most, evenly spaced."""

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
class DensityCoverage(Metric):
    """`density` ≥ 0 and `coverage` ∈ [0, 1]; neighbours: k.  num_samples: of both sets at most, evenly spaced."""

    def __init__(self, *, neighbours: PositiveInt, num_samples: Annotated[int, Field(ge=2)]) -> None:
        self.neighbours = neighbours
        self.num_samples = num_samples

    def __call__(self, samples: Samples, train: Real, test: Real) -> dict[str, float]:
        real, fake = equally_many(train, samples, self.num_samples)
        _, balls, filled = inside(real, radii(real, self.neighbours), fake)
        return {"density": balls.mean().item() / self.neighbours, "coverage": filled.mean().item()}


def equally_many(train: Real, samples: Samples, most: int) -> tuple[Tensor, Tensor]:
    """Features of as many real samples as others, (n, d) each, about the real mean, where products round least."""
    real, fake = train.features(most), samples.features(most)
    n = min(len(real), len(fake))
    real, fake = real[evenly(len(real), n)], fake[evenly(len(fake), n)]
    centre = real.mean(0)
    return (real - centre).double(), (fake - centre).double()


def radii(members: Tensor, k: int) -> Tensor:
    """Distance (n,) of each member (n, d) from its k-th nearest neighbour, the farthest where there are fewer."""
    k = min(k, len(members) - 1)
    # The nearest of all is the member itself.
    return torch.cat([rows.kthvalue(k + 1, dim=1).values for rows in distances(members, members)])


def inside(centres: Tensor, radius: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of points (m, d) and balls at centres (n, d) with radius (n,), as float64:

    whether a point is in some ball (m,), in how many it is (m,), and whether a ball has a point in it (n,).
    """
    balls, filled = [], torch.zeros(len(centres), dtype=torch.bool)
    for rows in distances(points, centres):
        within = rows <= radius
        balls.append(within.sum(1))
        filled |= within.any(0)
    count = torch.cat(balls).double()
    return (count > 0).double(), count, filled.double()


def distances(a: Tensor, b: Tensor) -> Iterator[Tensor]:
    """Rows of the matrix of distances ‖aᵢ − bⱼ‖, chunk by chunk: a (n, d), b (m, d) → (≤ CHUNK, m)."""
    return paced((torch.cdist(part, b) for part in a.split(CHUNK)), len(a), "neighbours of samples")
