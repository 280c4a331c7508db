"""Squared maximum mean discrepancies: the distance between the mean embeddings of two sets under a kernel k.

    MMD² = E k(x, x') + E k(y, y') − 2 E k(x, y),    x ≠ x', y ≠ y'

This estimate is unbiased, so it can be slightly negative for two sets from one distribution.
Source: Gretton, Borgwardt, Rasch, Schölkopf & Smola, A kernel two-sample test, 2012.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from flowdiff.evaluation.comparisons.base import Comparison
from flowdiff.evaluation.features.samples import Real, Samples, paced
from flowdiff.registry import register
from flowdiff.runs.undefined import TOO_FEW, Undefined

AtLeastTwo = Annotated[int, Field(ge=2)]


def mmd2(kernel: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> float:
    """MMD² of x (N, d) and y (M, d) under kernel(a, b) → (len(a), len(b)); N, M ≥ 2."""

    def within(a: Tensor) -> Tensor:
        k = kernel(a, a)
        return (k.sum() - k.diagonal().sum()) / (len(a) * (len(a) - 1))

    return (within(x) + within(y) - 2 * kernel(x, y).mean()).item()


@register("comparison", "kernel_distance")
class KernelDistance(Comparison):
    """MMD² of features, averaged over random subsets: `kid` in Inception features, else `kd_<extractor>`.

    MMD² = E k(x, x') + E k(y, y') − 2 E k(x, y),    k(x, y) = (⟨x, y⟩/d + 1)³

    Args:
        subsets: number of subsets, ≥ 1.
        subset_size: samples of a subset, drawn without replacement, ≥ 2; all samples if there are fewer.

    Source: Bińkowski, Sutherland, Arbel & Gretton, Demystifying MMD GANs, 2018.
    """

    def __init__(self, *, subsets: PositiveInt, subset_size: AtLeastTwo) -> None:
        self.subsets = subsets
        self.subset_size = subset_size

    def __call__(self, samples: Samples, train: Real, test: Real) -> dict[str, float]:
        x, y = samples.features(), train.features()
        size = min(self.subset_size, len(x), len(y))
        name = samples.extractor.metric_name("kd")
        if size < 2:
            return {name: Undefined(TOO_FEW)}
        generator = torch.Generator().manual_seed(0)

        def subset(members: Tensor) -> Tensor:
            return members[torch.randperm(len(members), generator=generator)[:size]].double()

        found = (mmd2(polynomial, subset(x), subset(y)) for _ in range(self.subsets))
        return {name: statistics.fmean(paced(found, self.subsets, f"subsets for {name}", lambda _: 1))}


@register("comparison", "mmd")
class MMD(Comparison):
    """MMD² of features under a Gaussian kernel, `mmd2`.

    MMD² = E k(x, x') + E k(y, y') − 2 E k(x, y),    k(x, y) = exp(−‖x − y‖²/2h²)

    h is the median distance within the training split. The result is at most 2, and of order 1/n for two sets from
    one distribution.

    Args:
        num_samples: at most so many samples of either set are compared, evenly spaced, ≥ 2.

    Source: Gretton, Borgwardt, Rasch, Schölkopf & Smola, A kernel two-sample test, 2012.
    """

    def __init__(self, *, num_samples: AtLeastTwo) -> None:
        self.num_samples = num_samples

    def __call__(self, samples: Samples, train: Real, test: Real) -> dict[str, float]:
        x, y = (s.features(self.num_samples).double() for s in (samples, train))
        if min(len(x), len(y)) < 2:
            return {"mmd2": Undefined(TOO_FEW)}
        width = torch.pdist(y).median()
        return {"mmd2": mmd2(lambda a, b: (-(torch.cdist(a, b) ** 2) / (2 * width**2)).exp(), x, y)}


def polynomial(x: Tensor, y: Tensor) -> Tensor:
    """k(x, y) = (⟨x, y⟩/d + 1)³ of all pairs, (N, M)."""
    return (x @ y.T / x.shape[1] + 1) ** 3
