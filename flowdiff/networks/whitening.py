"""Whitening: the exact affine first layer of a score flow, y = A_σ (x − μ), which knows the noise level.

If the data were Gaussian, x = x0 + σ·noise would be N(μ, Σ + σ²I), and A_σ = (Σ + σ²I)^(−1/2) would make y ~ N(0, I).
With an identity flow behind it the score flow *is* that Gaussian, and its denoiser the Wiener filter.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from flowdiff.errors import ConfigurationError
from flowdiff.registry import register
from flowdiff.shapes import append_dims


class Whitening(nn.Module, ABC):
    """y = A_σ (x − μ) and its log-determinant; its statistics are buffers, measured once by `fit`.

    x, y (B, …), sigma (B,) in data units, log-determinant (B,).
    """

    @abstractmethod
    def forward(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """x → y, log|det ∂y/∂x|."""

    @abstractmethod
    def inverse(self, y: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """y → x, log|det ∂x/∂y|."""

    @abstractmethod
    def fit(self, batches: Iterable[Tensor]) -> None:
        """Measure the statistics from batches (B, …) of clean training data, in one pass, in float64."""


@register("whitening", "identity")
class IdentityWhitening(Whitening):
    """y = x: no whitening, for the ablation."""

    def __init__(self):
        super().__init__()

    def forward(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return x, x.new_zeros(len(x))

    def inverse(self, y: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return y, y.new_zeros(len(y))

    def fit(self, batches: Iterable[Tensor]) -> None:
        pass


@register("whitening", "isotropic")
class IsotropicWhitening(Whitening):
    """y = x/√(σ² + σ_data²), σ_data² = E[x0²] per dimension: with an identity flow D = c_skip·x, as in EDM.

    The mean is not removed, hence σ_data is the root mean square (Karras et al., 2022, take it as a constant).
    """

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.dim = math.prod(shape)
        self.register_buffer("variance", torch.ones(()))

    def forward(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        variance = sigma**2 + self.variance
        return x * append_dims(variance.rsqrt(), x.ndim), -0.5 * self.dim * variance.log()

    def inverse(self, y: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        variance = sigma**2 + self.variance
        return y * append_dims(variance.sqrt(), y.ndim), 0.5 * self.dim * variance.log()

    def fit(self, batches: Iterable[Tensor]) -> None:
        total, count = 0.0, 0
        for x in batches:
            total += float(x.double().square().sum())
            count += x.numel()
        self.variance.fill_(total / count)


@register("whitening", "zca")
class ZCAWhitening(Whitening):
    """y = U diag(λ + σ²)^(−1/2) Uᵀ (x − μ), with μ and U diag(λ) Uᵀ the mean and covariance of the data.

    Holds a D×D matrix: refused above 8,192 dimensions, where it would take more than 256 MiB.
    Source: Bell & Sejnowski, The "independent components" of natural scenes are edge filters, 1997.
    """

    MAX_DIM = 8192

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        dim = math.prod(shape)
        if dim > self.MAX_DIM:
            raise ConfigurationError(
                f"whitening=zca needs a {dim:,}×{dim:,} matrix ({4 * dim**2 / 2**30:.1f} GiB) for data of shape "
                f"{tuple(shape)}, allowed are {self.MAX_DIM:,} dimensions: take whitening=isotropic."
            )
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("basis", torch.eye(dim))  # U, eigenvectors in columns
        self.register_buffer("eigenvalues", torch.ones(dim))  # λ

    def forward(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        variance = self._variance(sigma)  # (B, D)
        y = ((x.flatten(1) - self.mean) @ self.basis * variance.rsqrt()) @ self.basis.T
        return y.view_as(x), -0.5 * variance.log().sum(1)

    def inverse(self, y: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        variance = self._variance(sigma)
        x = (y.flatten(1) @ self.basis * variance.sqrt()) @ self.basis.T + self.mean
        return x.view_as(y), 0.5 * variance.log().sum(1)

    def fit(self, batches: Iterable[Tensor]) -> None:
        count, total, outer = 0, 0.0, 0.0
        for x in batches:
            x = x.flatten(1).double()
            count, total, outer = count + len(x), total + x.sum(0), outer + x.T @ x
        mean = total / count
        covariance = outer / count - torch.outer(mean, mean)
        eigenvalues, basis = torch.linalg.eigh(covariance)
        self.mean.copy_(mean)
        self.basis.copy_(basis)
        self.eigenvalues.copy_(eigenvalues.clamp(min=0.0))  # rounding may leave a zero eigenvalue at −1e−17

    def _variance(self, sigma: Tensor) -> Tensor:
        return self.eigenvalues + append_dims(sigma**2, 2)
