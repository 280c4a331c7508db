"""The Fréchet distance between two sets of features, each summarised by its mean μ and covariance Σ.

    d² = ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂) − 2 tr (Σ₁Σ₂)^½,    tr (Σ₁Σ₂)^½ = Σᵢ λᵢ(RᵀΣ₂R)^½    for any R with RRᵀ = Σ₁

RᵀΣ₂R has the eigenvalues of Σ₁Σ₂ and is symmetric and positive semidefinite, so one symmetric eigenproblem gives d²:
no number becomes complex, and covariances of deficient rank (no more samples than features) are exact too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from flowdiff.errors import DataError


class FeatureStatistics:
    """Streaming mean and covariance of features, in float64 on the CPU.

    Keeps n, the mean and the scatter S = Σᵢ (fᵢ − mean)(fᵢ − mean)ᵀ, and joins batches by
    S = S_a + S_b + n_a n_b / n · δδᵀ with δ = mean_b − mean_a, which does not cancel as Σ ffᵀ − n·mean·meanᵀ does.

    Args:
        num_features: number d of features.

    Source: Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979.
    """

    def __init__(self, num_features: int) -> None:
        self.n = 0
        self.mean = torch.zeros(num_features, dtype=torch.float64)
        self.scatter = torch.zeros(num_features, num_features, dtype=torch.float64)

    def update(self, features: Tensor) -> FeatureStatistics:
        """Add a batch of features (N, d); returns itself."""
        features = features.detach().cpu().double()
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise DataError(
                f"features of shape {tuple(features.shape)} were given to statistics of {len(self.mean)} features: "
                f"give (N, {len(self.mean)})."
            )
        if len(features) > 0:
            mean = features.mean(0)
            centred = features - mean
            self._join(len(features), mean, centred.T @ centred)
        return self

    def merge(self, other: FeatureStatistics) -> FeatureStatistics:
        """Add the features of another object; returns itself."""
        if other.n > 0:
            self._join(other.n, other.mean, other.scatter)
        return self

    @property
    def cov(self) -> Tensor:
        """Unbiased covariance (d, d); raises DataError below two samples."""
        if self.n < 2:
            raise DataError(f"a covariance needs at least 2 samples, but {self.n} were given: evaluate more samples.")
        return self.scatter / (self.n - 1)

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors to keep on disk; `from_state_dict` reads them."""
        return {"n": self.n, "mean": self.mean, "scatter": self.scatter}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> FeatureStatistics:
        """The statistics that `state_dict` saved."""
        statistics = cls(len(state["mean"]))
        statistics.n, statistics.mean, statistics.scatter = state["n"], state["mean"], state["scatter"]
        return statistics

    def _join(self, n: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.n + n
        delta = mean - self.mean
        self.scatter = self.scatter + scatter + torch.outer(delta, delta) * (self.n * n / total)
        self.mean = self.mean + delta * (n / total)
        self.n = total


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Squared Fréchet (2-Wasserstein) distance between the Gaussians of a and b, ≥ 0, in squared feature units.

    Biased upward by about the sampling noise of both covariances: print a.n and b.n beside it. It is not-a-number if
    and only if a feature was not finite, as with a diverged model. Raises DataError below two samples.

    Source: Dowson and Landau, "The Fréchet Distance between Multivariate Normal Distributions", 1982; Heusel et al.,
    "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", 2017.
    """
    cov_a, cov_b = a.cov, b.cov  # (d, d)
    if len(a.mean) != len(b.mean):
        raise DataError(f"{len(a.mean)} features cannot be compared with {len(b.mean)}: use one extractor for both.")
    if not all(t.isfinite().all() for t in (a.mean, b.mean, cov_a, cov_b)):
        return math.nan
    root, other = (_root(cov_a), cov_b) if a.n <= b.n else (_root(cov_b), cov_a)  # fewer samples make R thinner
    product = root.T @ other @ root
    # Rounding turns eigenvalues of 0 into about −1e-16.
    root_trace = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + cov_a.trace() + cov_b.trace() - 2 * root_trace
    return max(distance.item(), 0.0)


def _root(cov: Tensor) -> Tensor:
    """R, (d, rank), with RRᵀ = Σ: Cholesky's factor; for a singular Σ from eigenvectors, ten times the work."""
    factor, failed = torch.linalg.cholesky_ex(cov)
    if not failed:
        return factor
    eigenvalues, vectors = torch.linalg.eigh(cov)
    # Eigenvalues of directions without samples are rounding errors, and their roots would be 1e8 times as large.
    taken = eigenvalues > eigenvalues[-1] * len(cov) * torch.finfo(cov.dtype).eps
    return vectors[:, taken] * eigenvalues[taken].sqrt()  # (d, rank)
