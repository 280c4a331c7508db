"""Squared maximum mean discrepancies: how far the mean embeddings of two sets are apart under a kernel k.

    MMD² = E k(x, x') + E k(y, y') − 2 E k(x, y),    x ≠ x', y ≠ y'

which is unbiased, and so a little below 0 at times for sets of one law.
Source: Gretton, Borgwardt, Rasch, Schölkopf & Smola, A kernel two-sample test, 2012.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from flowdiff.evaluation.comparisons.base import Metric
from flowdiff.evaluation.features.samples import Real, Samples, paced
from flowdiff.registry import register

AtLeastTwo = Annotated[int, Field(ge=2)]


def mmd2(kernel: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> float:
    """The module's MMD² of x (N, d) and y (M, d) under kernel(a, b) → (len(a), len(b)); N, M ≥ 2."""

    def within(a: Tensor) -> Tensor:
        k = kernel(a, a)
        return (k.sum() - k.diagonal().sum()) / (len(a) * (len(a) - 1))

    return (within(x) + within(y) - 2 * kernel(x, y).mean()).item()


@register("comparison", "kernel_distance")
class KernelDistance(Metric):
    """MMD² under k(x, y) = (⟨x, y⟩/d + 1)³, averaged over subsets: `kid` in Inception features, else `kd_<extractor>`.

    Subsets of subset_size samples (or all, where there are fewer), drawn without replacement, as many as `subsets`.

    Source: Bińkowski, Sutherland, Arbel & Gretton, Demystifying MMD GANs, 2018.
    """

    def __init__(self, *, subsets: PositiveInt, subset_size: AtLeastTwo) -> None:
        self.subsets = subsets
        self.subset_size = subset_size

    def __call__(self, samples: Samples, train: Real, test: Real) -> dict[str, float]:
        x, y = samples.features(), train.features()
        size = min(self.subset_size, len(x), len(y))
        generator = torch.Generator().manual_seed(0)

        def subset(of: Tensor) -> Tensor:
            return of[torch.randperm(len(of), generator=generator)[:size]].double()

        found = (mmd2(polynomial, subset(x), subset(y)) for _ in range(self.subsets))
        name = samples.extractor.metric("kd")
        return {name: statistics.fmean(paced(found, self.subsets, f"subsets for {name}", lambda _: 1))}


@register("comparison", "mmd")
class MMD(Metric):
    """`mmd2`, MMD² of features under k(x, y) = exp(−‖x − y‖²/2h²); h is the median distance within the training split.

    num_samples: of both sets at most, evenly spaced. Bounded by 2, of order 1/n for sets of one law.
    """

    def __init__(self, *, num_samples: AtLeastTwo) -> None:
        self.num_samples = num_samples

    def __call__(self, samples: Samples, train: Real, test: Real) -> dict[str, float]:
        x, y = (s.features(self.num_samples).double() for s in (samples, train))
        width = torch.pdist(y).median()
        return {"mmd2": mmd2(lambda a, b: (-(torch.cdist(a, b) ** 2) / (2 * width**2)).exp(), x, y)}


def polynomial(x: Tensor, y: Tensor) -> Tensor:
    """k(x, y) = (⟨x, y⟩/d + 1)³ of all pairs: (N, M)."""
    return (x @ y.T / x.shape[1] + 1) ** 3
