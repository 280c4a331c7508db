"""Whitening: the exact affine first layer of a score flow, y = A_σ (x − μ), which depends on the noise level.

If the data were Gaussian, x = x0 + σ·noise would be N(μ, Σ + σ²I), and A_σ = (Σ + σ²I)^(−1/2) would make y ~ N(0, I).
Followed by an identity flow, it makes the score flow exactly that Gaussian, whose denoiser is the Wiener filter.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from flowdiff.errors import ConfigurationError
from flowdiff.registry import register
from flowdiff.shapes import append_dims, sum_except_batch


class Whitening(nn.Module, ABC):
    """An affine map that whitens data of noise level σ; its statistics are buffers, measured once by `fit`.

    y = A_σ (x − μ)

    standardises: whether y becomes N(0, I) as σ grows, which the gate of a flow needs (flowdiff/models/flows/gate.py).
    """

    standardises: bool = True

    @abstractmethod
    def forward(self, x: Tensor, sigma: Tensor, gate: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """y, shaped like x (B, …), and log|det ∂y/∂x| (B,) in nats, for sigma (B,) in data units.

        gate: γ² (B,), whose root then multiplies y; the log-determinant does not contain it. A whitening multiplies its
            own scales by γ, which costs less than multiplying y.
        """

    @abstractmethod
    def inverse(self, y: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """x, shaped like y (B, …), and log|det ∂x/∂y| (B,) in nats, for sigma (B,) in data units."""

    @abstractmethod
    def fit(self, batches: Iterable[Tensor]) -> None:
        """Measure the statistics from batches (B, …) of clean training data, in one pass, in float64."""


@register("whitening", "identity")
class IdentityWhitening(Whitening):
    """No whitening, for the ablation.

    y = x
    """

    standardises = False

    def __init__(self) -> None:
        super().__init__()

    def forward(self, x: Tensor, sigma: Tensor, gate: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y = x if gate is None else x * append_dims(gate.sqrt(), x.ndim)
        return y, x.new_zeros(len(x))

    def inverse(self, y: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return y, y.new_zeros(len(y))

    def fit(self, batches: Iterable[Tensor]) -> None:
        pass


@register("whitening", "isotropic")
class IsotropicWhitening(Whitening):
    """Division by the standard deviation of noised data: with an identity flow D = μ + c_skip·(x − μ), as in EDM.

    y = (x − μ)/√(σ² + σ_data²),  σ_data² = E[(x0 − μ)²], averaged over dimensions

    center=true removes the mean μ of each dimension, so that D of an untrained flow is μ where x is nothing but noise.
    center=false takes μ = 0, as the source does, and σ_data is the root mean square: a flow must then learn μ as a
    shift of each dimension, at all noise levels, and nets that share their weights over places learn it slowly.

    Args:
        shape: shape of one sample.
        center: whether the mean is removed.

    Source: Karras, Aittala, Aila, Laine, Elucidating the design space of diffusion-based generative models, 2022; a
    constant σ_data and μ = 0.
    """

    variance: Tensor  # σ_data²
    mean: Tensor  # μ, with center only

    def __init__(self, shape: tuple[int, ...], *, center: bool):
        super().__init__()
        self.dim = math.prod(shape)
        self.center = center
        self.register_buffer("variance", torch.ones(()))
        if center:
            self.register_buffer("mean", torch.zeros(shape))

    def forward(self, x: Tensor, sigma: Tensor, gate: Tensor | None = None) -> tuple[Tensor, Tensor]:
        variance = sigma**2 + self.variance
        if self.center:
            x = x - self.mean
        return x * append_dims(_scale(variance, gate), x.ndim), -0.5 * self.dim * variance.log()

    def inverse(self, y: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        variance = sigma**2 + self.variance
        x = y * append_dims(variance.sqrt(), y.ndim)
        return x + self.mean if self.center else x, 0.5 * self.dim * variance.log()

    def fit(self, batches: Iterable[Tensor]) -> None:
        count = 0
        total = squares = torch.zeros((), dtype=torch.float64)
        for x in batches:
            numbers = x.double()
            count, total, squares = count + len(x), total + numbers.sum(0), squares + numbers.square().sum(0)
        variance = squares / count
        if self.center:
            self.mean.copy_(total / count)
            variance = (variance - (total / count) ** 2).clamp(min=0.0)  # rounding may turn a zero into −1e−17
        self.variance.fill_(float(variance.mean()))


@register("whitening", "zca")
class ZCAWhitening(Whitening):
    """Whitening by the full covariance of the data: with an identity flow D is the Wiener filter.

    y = U diag(λ + σ²)^(−1/2) Uᵀ (x − μ),  μ and U diag(λ) Uᵀ the mean and covariance of the data

    Args:
        shape: shape of one sample, with D = prod(shape) dimensions.

    Raises:
        ConfigurationError: D > 8,192; the D×D matrix would take more than 256 MiB.

    Source: Bell, Sejnowski, The "independent components" of natural scenes are edge filters, 1997.
    """

    MAX_DIM = 8192
    mean: Tensor  # μ (D,)
    basis: Tensor  # U (D, D), eigenvectors in columns
    eigenvalues: Tensor  # λ (D,)

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        dim = math.prod(shape)
        if dim > self.MAX_DIM:
            raise ConfigurationError(
                f"whitening=zca needs a {dim:,}×{dim:,} matrix ({4 * dim**2 / 2**30:.1f} GiB) for data of shape "
                f"{tuple(shape)}, and at most {self.MAX_DIM:,} dimensions are allowed: set whitening=dct."
            )
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("basis", torch.eye(dim))
        self.register_buffer("eigenvalues", torch.ones(dim))

    def forward(self, x: Tensor, sigma: Tensor, gate: Tensor | None = None) -> tuple[Tensor, Tensor]:
        variance = self._variance(sigma)  # (B, D)
        y = ((x.flatten(1) - self.mean) @ self.basis * _scale(variance, gate)) @ self.basis.T
        return y.view_as(x), -0.5 * variance.log().sum(1)

    def inverse(self, y: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        variance = self._variance(sigma)
        x = (y.flatten(1) @ self.basis * variance.sqrt()) @ self.basis.T + self.mean
        return x.view_as(y), 0.5 * variance.log().sum(1)

    def fit(self, batches: Iterable[Tensor]) -> None:
        count = 0
        total = outer = torch.zeros((), dtype=torch.float64)
        for x in batches:
            x = x.flatten(1).double()
            count, total, outer = count + len(x), total + x.sum(0), outer + x.T @ x
        mean = total / count
        covariance = outer / count - torch.outer(mean, mean)
        eigenvalues, basis = torch.linalg.eigh(covariance)
        self.mean.copy_(mean)
        self.basis.copy_(basis)
        self.eigenvalues.copy_(eigenvalues.clamp(min=0.0))  # rounding may turn a zero eigenvalue into −1e−17

    def _variance(self, sigma: Tensor) -> Tensor:
        return self.eigenvalues + append_dims(sigma**2, 2)


@register("whitening", "dct")
class DCTWhitening(Whitening):
    """Whitening in the 2-D cosine basis of each channel: approximates `zca` for images of any size.

    y = U diag(λ + σ²)^(−1/2) Uᵀ (x − μ)

    In natural images the correlation of two pixels depends mostly on their distance, and the cosine basis nearly
    diagonalises such a covariance. U also rotates the channels to axes along which their values are uncorrelated on
    average. The transforms are products with the H×H and W×W cosine matrices, O(D·(C + H + W)): up to 256×256 this is
    faster than an FFT, and it can be differentiated any number of times.

    Args:
        shape: shape of one sample, (C, H, W); any other shape is flattened to one row of one channel.

    Source: Ahmed, Natarajan, Rao, Discrete cosine transform, 1974.
    """

    mean: Tensor  # μ (C, H, W)
    channels: Tensor  # axes of the channels (C, C), in rows
    spectrum: Tensor  # λ (C, H, W)
    rows: Tensor  # cosine basis (H, H)
    columns: Tensor  # cosine basis (W, W)

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.grid = tuple(shape) if len(shape) == 3 else (1, 1, math.prod(shape))
        C, H, W = self.grid
        self.register_buffer("mean", torch.zeros(self.grid))
        self.register_buffer("channels", torch.eye(C))
        self.register_buffer("spectrum", torch.ones(self.grid))
        self.register_buffer("rows", cosine_basis(H), persistent=False)
        self.register_buffer("columns", cosine_basis(W), persistent=False)

    def forward(self, x: Tensor, sigma: Tensor, gate: Tensor | None = None) -> tuple[Tensor, Tensor]:
        variance = self._variance(sigma)  # (B, C, H, W)
        y = self._from_basis(self._to_basis(x.view(-1, *self.grid) - self.mean) * _scale(variance, gate))
        return y.view_as(x), -0.5 * sum_except_batch(variance.log())

    def inverse(self, y: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        variance = self._variance(sigma)
        x = self._from_basis(self._to_basis(y.view(-1, *self.grid)) * variance.sqrt()) + self.mean
        return x.view_as(y), 0.5 * sum_except_batch(variance.log())

    def fit(self, batches: Iterable[Tensor]) -> None:
        count = 0
        total = outer = torch.zeros((), dtype=torch.float64)
        _, H, W = self.grid
        rows, columns = cosine_basis(H, torch.float64), cosine_basis(W, torch.float64)
        for x in batches:
            a = rows.to(x.device) @ x.reshape(-1, *self.grid).double() @ columns.to(x.device).T
            count, total = count + len(a), total + a.sum(0)
            outer = outer + torch.einsum("bihw,bjhw->ijhw", a, a)  # second moments of the channels, (C, C, H, W)
        mean = total / count
        covariance = outer / count - torch.einsum("ihw,jhw->ijhw", mean, mean)
        _, axes = torch.linalg.eigh(covariance.sum((2, 3)))  # (C, C), in columns
        spectrum = torch.einsum("ic,ijhw,jc->chw", axes, covariance, axes)
        self.mean.copy_(rows.to(mean).T @ mean @ columns.to(mean))
        self.channels.copy_(axes.T)
        self.spectrum.copy_(spectrum.clamp(min=0.0))  # rounding may turn a zero into −1e−17

    def _to_basis(self, x: Tensor) -> Tensor:
        return torch.einsum("ij,bjhw->bihw", self.channels, self.rows @ x @ self.columns.T)

    def _from_basis(self, a: Tensor) -> Tensor:
        return self.rows.T @ torch.einsum("ji,bjhw->bihw", self.channels, a) @ self.columns

    def _variance(self, sigma: Tensor) -> Tensor:
        return self.spectrum + append_dims(sigma**2, 4)


def _scale(variance: Tensor, gate: Tensor | None) -> Tensor:
    """γ/√variance, like variance (B, …); 1/√variance without a gate."""
    return variance.rsqrt() if gate is None else (append_dims(gate, variance.ndim) / variance).sqrt()


def cosine_basis(n: int, dtype: torch.dtype | None = None) -> Tensor:
    """The orthonormal cosine basis (n, n): C[k, i] = √(2/n)·cos(π(i + ½)k/n), C[0, i] = √(1/n), C Cᵀ = I."""
    k, i = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
    basis = math.sqrt(2 / n) * torch.cos(math.pi * (i + 0.5) * k / n)
    basis[0] = math.sqrt(1 / n)
    return basis.to(dtype or torch.get_default_dtype())
