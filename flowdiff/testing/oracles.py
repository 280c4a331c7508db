"""Distributions whose denoiser, score and density are known in closed form at every noise level.

A mixture Σ_k w_k N(μ_k, S_k), noised with N(0, σ²I), is Σ_k w_k N(μ_k, S_k + σ²I). Everything is computed in float64
and returned in x's dtype, so that a comparison shows a method's error and not the oracle's.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import cached_property

import torch
from torch import Tensor

from flowdiff.models.conditioning import Conditioning
from flowdiff.models.networks.base import Density
from flowdiff.noise import Generators, randn


class Oracle(ABC):
    """A known distribution as a denoiser: `oracle(x, sigma, cond)` is D, and `oracle.network` is its density.

    In all methods x is (B, …), sigma (B,) > 0, and cond the condition of B samples or None.
    """

    @abstractmethod
    def __call__(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        """D, like x."""

    @abstractmethod
    def score(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        """The score ∇ₓ log p_σ(x|c), like x."""

    @abstractmethod
    def log_prob(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        """log p_σ(x|c) in nats, (B,)."""

    @abstractmethod
    def sample(self, sigma: Tensor, cond: Conditioning | None = None, generator: Generators = None) -> Tensor:
        """Exact samples x ~ p_σ(·|c), one for each entry of sigma (B,)."""

    @cached_property
    def network(self) -> OracleDensity:
        """The same distribution as a network."""
        return OracleDensity(self)


class OracleDensity(Density):
    """An oracle as a network, whose output is its score.

    Args:
        oracle: the distribution.
    """

    def __init__(self, oracle: Oracle):
        super().__init__()
        self.oracle = oracle

    def forward(self, x: Tensor, c_noise: Tensor, cond: Conditioning | None = None) -> Tensor:
        return self.oracle.score(x, c_noise, cond)

    def log_prob(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        return self.oracle.log_prob(x, sigma, cond)

    def log_prob_and_score(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> tuple[Tensor, Tensor]:
        return self.oracle.log_prob(x, sigma, cond), self.oracle.score(x, sigma, cond)

    def sample(self, sigma: Tensor, cond: Conditioning | None = None, generator: Generators = None) -> Tensor:
        return self.oracle.sample(sigma, cond, generator)


class Gaussian(Oracle):
    """N(mean, covariance) on flat vectors.

    Args:
        mean: (D,).
        covariance: (D, D).
    """

    def __init__(self, mean: Tensor, covariance: Tensor):
        self.mean = mean.double()
        self.covariance = covariance.double()
        self.eigenvalues, self.basis = torch.linalg.eigh(self.covariance)

    def __call__(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        """The Wiener filter D = μ + S(S + σ²I)⁻¹(x − μ): x (B, D), sigma (B,)."""
        variance = sigma.double()[:, None] ** 2
        y = (x.double() - self.mean) @ self.basis
        return (self.mean + (self.eigenvalues / (self.eigenvalues + variance) * y) @ self.basis.T).to(x)

    def score(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        y = (x.double() - self.mean) @ self.basis
        return (-y / (self.eigenvalues + sigma.double()[:, None] ** 2) @ self.basis.T).to(x)

    def log_prob(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        variances = self.eigenvalues + sigma.double()[:, None] ** 2
        y = (x.double() - self.mean) @ self.basis
        return (-0.5 * (y**2 / variances + variances.log() + math.log(2 * math.pi)).sum(1)).to(x)

    def end_of_trajectory(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        """The consistency function: where the probability-flow ODE takes x (B, D) from sigma (B,) to σ = 0.002."""
        y = (x.double() - self.mean) @ self.basis
        shrinkage = ((self.eigenvalues + 0.002**2) / (self.eigenvalues + sigma.double()[:, None] ** 2)).sqrt()
        return (self.mean + (shrinkage * y) @ self.basis.T).to(x)

    def sample(self, sigma: Tensor, cond: Conditioning | None = None, generator: Generators = None) -> Tensor:
        z = randn((len(sigma), len(self.mean)), generator, dtype=torch.float64, device=sigma.device)
        spread = (self.eigenvalues + sigma.double()[:, None] ** 2).sqrt()
        return (self.mean + (spread * z) @ self.basis.T).to(sigma)


class Mixture(Oracle):
    """Σ_k w_k N(μ_k, s_k²·I) on samples of any shape.

    A condition replaces the weights: `cond.vector` (B, K) holds the weights of each sample. A one-hot vector is class
    k, and the mixture's own weights are the null condition (`null(n)`).

    Args:
        means: μ_k, (K, *shape).
        stds: s_k, (K,), > 0.
        weights: w_k up to a common factor, (K,), > 0; by default all equal.
    """

    def __init__(self, means: Tensor, stds: Tensor, weights: Tensor | None = None):
        self.means = means.double()
        self.stds = stds.double()
        weights = torch.ones(len(means)) if weights is None else weights
        self.weights = weights.double() / weights.double().sum()

    def null(self, n: int) -> Conditioning:
        return Conditioning(self.weights.expand(n, -1))

    def classes(self, labels: Tensor) -> Conditioning:
        """The condition "component k" for each label k of labels (B,) int64."""
        return Conditioning(torch.eye(len(self.weights), dtype=torch.float64)[labels])

    def __call__(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        """D = Σ_k r_k (s_k² x + σ² μ_k)/(s_k² + σ²), r_k the posterior probability of component k."""
        flat, means, variances, log_joint = self._parts(x, sigma, cond)
        posterior = log_joint.softmax(1)[..., None]  # (B, K, 1)
        share = (self.stds**2 / variances)[..., None]  # (B, K, 1)
        return (posterior * (share * flat[:, None] + (1 - share) * means)).sum(1).reshape(x.shape).to(x)

    def score(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        flat, means, variances, log_joint = self._parts(x, sigma, cond)
        pulls = (means - flat[:, None]) / variances[..., None]  # (B, K, D)
        return (log_joint.softmax(1)[..., None] * pulls).sum(1).reshape(x.shape).to(x)

    def log_prob(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        return self._parts(x, sigma, cond)[-1].logsumexp(1).to(x)

    def sample(self, sigma: Tensor, cond: Conditioning | None = None, generator: Generators = None) -> Tensor:
        means = self.means.flatten(1)
        draw = randn((len(sigma), means.shape[1] + 1), generator, dtype=torch.float64, device=sigma.device)
        u = torch.special.ndtr(draw[:, :1])
        k = (u > self._weights(len(sigma), cond).cumsum(1)).sum(1).clamp(max=len(means) - 1)
        spread = (self.stds[k] ** 2 + sigma.double() ** 2).sqrt()[:, None]
        return (means[k] + spread * draw[:, 1:]).reshape(-1, *self.means.shape[1:]).to(sigma)

    @property
    def mean(self) -> Tensor:
        """Mean of the clean data, flat: (D,)."""
        return self.weights @ self.means.flatten(1)

    @property
    def covariance(self) -> Tensor:
        """Covariance of the clean data, flat: (D, D)."""
        centred = self.means.flatten(1) - self.mean
        within = (self.weights * self.stds**2).sum() * torch.eye(centred.shape[1], dtype=torch.float64)
        return within + centred.T @ (self.weights[:, None] * centred)

    def _parts(self, x: Tensor, sigma: Tensor, cond: Conditioning | None) -> tuple[Tensor, ...]:
        """x (B, D), μ (K, D), s_k² + σ² (B, K), ln w_k N(x; μ_k, s_k² + σ²) (B, K)."""
        flat, means = x.double().flatten(1), self.means.flatten(1)
        variances = self.stds**2 + sigma.double()[:, None] ** 2
        distances = ((flat[:, None] - means) ** 2).sum(-1)
        log_normal = -0.5 * (distances / variances + flat.shape[1] * (2 * math.pi * variances).log())
        return flat, means, variances, self._weights(len(x), cond).log() + log_normal

    def _weights(self, n: int, cond: Conditioning | None) -> Tensor:
        """The weights of n samples, (n, K)."""
        return self.weights.expand(n, -1) if cond is None or cond.vector is None else cond.vector.double()


def two_by_two(dtype: torch.dtype = torch.float64) -> Mixture:
    """Four unequal bumps in the plane, without a symmetry that could hide an error."""
    means = torch.tensor([[0.8, 0.5], [-0.7, 0.9], [-0.4, -0.8], [0.9, -0.6]], dtype=dtype)
    return Mixture(means, torch.tensor([0.15, 0.2, 0.3, 0.1]), torch.tensor([0.1, 0.2, 0.3, 0.4]))
