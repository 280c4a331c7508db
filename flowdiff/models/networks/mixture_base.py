"""The base of a flow that is a mixture of Gaussians fitted to the data, at every noise level the exact one.

    p_σ(x|c) = Σ_k w_ck N(x; μ_ck, Σ_ck + σ²I)

If clean data of class c are the mixture with σ = 0, then noised data are this one: the mixtures of all σ are one
diffusion, and D is the mean of clean data given x, without anything to be learned. A flow in front of the mixture
learns what it lacks. Weights, means and covariances are measured once, by expectation maximisation, before training.

One Gaussian, N(0, I) behind a whitening, is the wrong start at the levels that decide what a sample looks like: there x
is near one of several clusters of its class, and D is the mean of that cluster. A flow has to learn at every σ how to
bend one Gaussian into these clusters, and the mixture has them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import final

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from flowdiff.errors import ConfigurationError
from flowdiff.noise import Generators, randn
from flowdiff.progress import counting
from flowdiff.shapes import append_dims

MAX_DIM = 256
# Expectation maximisation: at most this many rounds, or until a round adds less than this to log p, in nats a sample.
# More rounds change the mixture by less than another seed does.
ROUNDS, TOLERANCE = 60, 1e-2
# Added to the variances while the mixture is fitted, relative to the mean variance of the data.
RIDGE = 1e-3


@final
class MixtureBase(nn.Module):
    """A mixture of K Gaussians for each class, convolved with the noise; its parameters are buffers.

    p_σ(x|c) = Σ_k w_ck N(x; μ_ck, U_ck diag(λ_ck + σ²) U_ckᵀ),  p_σ(x) = Σ_c π_c p_σ(x|c)

    The covariance of a Gaussian with n samples is (n·Σ_ck + D·Σ_c)/(n + D), as if D more samples had the covariance Σ_c
    that the Gaussians of its class have on average: that of n < D samples alone is singular. In the same way Σ_c is
    drawn to the average of all classes. A class has at most one Gaussian for MIN_SAMPLES of its samples.

    Args:
        shape: shape of one sample, with D = prod(shape) dimensions.
        num_classes: number of classes C; None: the data have none.
        components: number K of Gaussians of a class, ≥ 1.

    Raises:
        ConfigurationError: D > 256; a Gaussian takes a D×D matrix.

    Source: Dempster, Laird, Rubin, Maximum likelihood from incomplete data via the EM algorithm, 1977; fitted by
    scikit-learn's GaussianMixture.
    """

    MIN_SAMPLES = 20

    prior: Tensor  # π (C,)
    weight: Tensor  # w (C, K); 0 where a class has fewer than K Gaussians
    mean: Tensor  # μ (C, K, D)
    basis: Tensor  # U (C, K, D, D), eigenvectors in columns
    eigenvalues: Tensor  # λ (C, K, D)

    def __init__(self, shape: tuple[int, ...], num_classes: int | None, components: PositiveInt):
        super().__init__()
        dim, classes = math.prod(shape), num_classes or 1
        if dim > MAX_DIM:
            raise ConfigurationError(
                f"network.components={components} needs {classes * components:,} matrices of {dim:,}×{dim:,} numbers, "
                f"and at most {MAX_DIM} dimensions are allowed: set network.components=0."
            )
        self.dim = dim
        self.register_buffer("prior", torch.full((classes,), 1 / classes))
        self.register_buffer("weight", torch.full((classes, components), 1 / components))
        self.register_buffer("mean", torch.zeros(classes, components, dim))
        self.register_buffer("basis", torch.eye(dim).repeat(classes, components, 1, 1))
        self.register_buffer("eigenvalues", torch.ones(classes, components, dim))

    def log_prob(self, x: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
        """log p_σ(x|c) in nats, (B,), for x (B, …), sigma (B,) in data units and labels (B,), −1 for no class."""
        x = x.flatten(1)
        if label is None:
            return self._log_marginal(x, sigma)
        without = label < 0
        if not bool(without.any()):
            return self._log_conditional(x, sigma, label)
        groups = [(~without).nonzero().flatten(), without.nonzero().flatten()]
        first, last = groups
        parts = [self._log_conditional(x[first], sigma[first], label[first]), self._log_marginal(x[last], sigma[last])]
        return torch.cat(parts)[torch.cat(groups).argsort()]

    @torch.no_grad()
    def sample(self, sigma: Tensor, label: Tensor | None, generator: Generators = None) -> Tensor:
        """Samples (B, D), one for each entry of sigma (B,)."""
        n, device = len(sigma), sigma.device
        numbers = randn((n, self.dim + 2), generator, device=device, dtype=sigma.dtype)
        z = numbers[:, 2:]
        u = torch.special.ndtr(numbers[:, :2])  # uniform in [0, 1]
        drawn = _draw(self.prior.expand(n, -1), u[:, 0])
        rows = drawn if label is None else torch.where(label < 0, drawn, label)
        k = _draw(self.weight[rows], u[:, 1])
        deviation = (self.eigenvalues[rows, k] + append_dims(sigma**2, 2)).sqrt()
        return torch.einsum("bj,bij->bi", z * deviation, self.basis[rows, k]) + self.mean[rows, k]

    def fit(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Fit the mixtures to batches of clean training data, (B, …), with labels (B,); it keeps all of them in memory.

        One fit takes about as long as a hundred passes over the data with the D×D matrices of K Gaussians.
        """
        samples, labels = zip(*((x.flatten(1).float().cpu(), label.cpu()) for x, label in batches), strict=True)
        x, label = torch.cat(samples), torch.cat(labels)
        classes, components = self.weight.shape
        if classes == 1:
            label = torch.zeros_like(label)
        ridge = RIDGE * float(x.var(0).mean())
        weight = torch.zeros(classes, components, dtype=torch.float64)
        mean = x.double().mean(0).repeat(classes, components, 1)
        covariance = torch.zeros(classes, components, self.dim, self.dim, dtype=torch.float64)
        counts = torch.bincount(label, minlength=classes).double()
        with counting("fitting the mixture of each class") as report:
            for c in range(classes):
                report(c, classes)
                own = x[label == c]
                k = max(1, min(components, len(own) // self.MIN_SAMPLES))
                weight[c, :k] = 1 / k
                if len(own):
                    weight[c, :k], mean[c, :k], covariance[c, :k] = _fitted(own, k, ridge)
            report(classes, classes)
        n = (weight * counts[:, None])[..., None, None]
        of_class = (n * covariance).sum(1, keepdim=True)
        of_all = of_class.sum(0) / len(x)
        of_class = (of_class + self.dim * of_all) / (counts[:, None, None, None] + self.dim)
        covariance = (n * covariance + self.dim * of_class) / (n + self.dim)
        eigenvalues, basis = torch.linalg.eigh(covariance)
        self.prior.copy_(counts / counts.sum())
        self.weight.copy_(weight)
        self.mean.copy_(mean)
        self.basis.copy_(basis)
        self.eigenvalues.copy_(eigenvalues.clamp(min=0.0))  # rounding may turn a zero eigenvalue into −1e−17

    def _log_marginal(self, x: Tensor, sigma: Tensor) -> Tensor:
        """log Σ_c π_c p_σ(x|c) in nats, (n,), for x (n, D)."""
        weight = (self.prior[:, None] * self.weight).flatten()
        parameters = (weight, self.mean.flatten(0, 1), self.basis.flatten(0, 1), self.eigenvalues.flatten(0, 1))
        return _log_mixture(x[None], sigma[None], *(part[None] for part in parameters))[0]

    def _log_conditional(self, x: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        """log p_σ(x|c) in nats, (n,), for x (n, D) and classes (n,).

        The samples of a class stand in one row of a table, so that each meets the matrices of its own class alone.
        """
        counts = torch.bincount(label, minlength=len(self.prior))
        order = label.argsort(stable=True)
        place = torch.empty_like(label)
        place[order] = torch.arange(len(label), device=label.device) - (counts.cumsum(0) - counts)[label[order]]
        table = len(counts), int(counts.max())
        rows = x.new_zeros(*table, self.dim).index_put((label, place), x)
        levels = sigma.new_ones(table).index_put((label, place), sigma)
        return _log_mixture(rows, levels, self.weight, self.mean, self.basis, self.eigenvalues)[label, place]


def _log_mixture(x: Tensor, sigma: Tensor, weight: Tensor, mean: Tensor, basis: Tensor, eigenvalues: Tensor) -> Tensor:
    """log p_σ(x) in nats, (C, n), of C mixtures of K Gaussians, for n samples of each mixture, x (C, n, D)."""
    classes, k, dim = mean.shape
    axes = basis.transpose(1, 2).reshape(classes, dim, k * dim)
    centre = torch.einsum("ckd,ckde->cke", mean, basis)
    y = (x @ axes).unflatten(2, (k, dim)) - centre[:, None]  # (C, n, K, D), in the axes of each Gaussian
    variance = eigenvalues[:, None] + append_dims(sigma**2, 4)
    square = (y.square() / variance + variance.log()).sum(3)
    terms = weight.log()[:, None] - 0.5 * square - 0.5 * dim * math.log(2 * math.pi)
    largest = terms.detach().amax(2, keepdim=True)
    # Not torch's logsumexp: its forward-mode derivative cannot be differentiated again.
    return (terms - largest).exp().sum(2).log() + largest.squeeze(2)


def _fitted(x: Tensor, components: int, ridge: float) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (K,), means (K, D) and covariances (K, D, D) of a mixture of x (n, D), in double precision."""
    if components == 1:
        y = x.double()
        centred = y - y.mean(0)
        return torch.ones(1), y.mean(0)[None], (centred.T @ centred / len(y))[None]
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(components, reg_covar=ridge, tol=TOLERANCE, max_iter=ROUNDS, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # ROUNDS are enough
        mixture.fit(x.numpy())
    weight, mean, covariance = map(torch.from_numpy, (mixture.weights_, mixture.means_, mixture.covariances_))
    return weight, mean, covariance


def _draw(weight: Tensor, u: Tensor) -> Tensor:
    """Indices (B,) with the probabilities weight (B, K), by inverting their sums at u (B,) in [0, 1]."""
    sums = weight.to(u.dtype).cumsum(1)
    last = (weight > 0).long().cumsum(1).argmax(1)  # the last one that has a probability, should u be at the very end
    return torch.minimum(torch.searchsorted(sums, (u * sums[:, -1])[:, None], right=True).flatten(), last)
