"""The sliced Wasserstein distance: the 2-Wasserstein distance of projections on a line, over random lines."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, PositiveInt

from flowdiff.data.readers import evenly
from flowdiff.evaluation.comparisons.base import Comparison
from flowdiff.evaluation.features.samples import Real, Samples
from flowdiff.registry import register


@register("comparison", "sliced_wasserstein")
class SlicedWasserstein(Comparison):
    """The sliced Wasserstein distance of features from the training split, `sliced_wasserstein`, in their units.

    SW² = E_θ ∫₀¹ (F⁻¹_θ·x(u) − F⁻¹_θ·y(u))² du,    θ uniform on the sphere

    Args:
        projections: number of lines θ, the same in every call, ≥ 1.
        num_samples: at most so many samples of either set are compared, evenly spaced, ≥ 2.

    Source: Bonneel, Rabin, Peyré & Pfister, Sliced and Radon Wasserstein barycenters of measures, 2015.
    """

    def __init__(self, *, projections: PositiveInt, num_samples: Annotated[int, Field(ge=2)]) -> None:
        self.projections = projections
        self.num_samples = num_samples

    def __call__(self, samples: Samples, train: Real, test: Real) -> dict[str, float]:
        x, y = (s.features(self.num_samples).double() for s in (samples, train))
        n = min(len(x), len(y))  # the quantiles of two sets of equal size are their sorted members
        x, y = x[evenly(len(x), n)], y[evenly(len(y), n)]
        generator = torch.Generator().manual_seed(0)
        lines = torch.randn(x.shape[1], self.projections, generator=generator, dtype=torch.float64)
        lines /= lines.norm(dim=0)
        apart = (x @ lines).sort(0).values - (y @ lines).sort(0).values  # (n, projections)
        return {"sliced_wasserstein": apart.square().mean().sqrt().item()}
