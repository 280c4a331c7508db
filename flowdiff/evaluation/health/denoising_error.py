"""The error of D at every noise level, beside predictions that need no network.

    e(σ) = E_{x0, noise} ‖D(x0 + σ·noise, σ, c) − x0‖² / dim         over test samples, with their own condition c

    means             the mean of the sample's class in the training data, or of all training data: no use of x
    variance          tr Σ/dim, about the error of the mean of all training data
    Wiener filter     μ + Σ(Σ + σ²I)⁻¹(x − μ), the best linear function of x; μ and Σ are those of the training data

The best D is at most as wrong as the Wiener filter and as the means that it can know. D = x + σ²·score, so a small
error of the score at a large σ is a large one of D. The test loss, whose σ are seldom large, does not show it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from flowdiff.data.base import Dataset
from flowdiff.data.readers import evenly
from flowdiff.diffusion.model import ConditionedDenoiser
from flowdiff.noise import generators, randn_like
from flowdiff.runs.health import Denoising

# Fixed, so that the curves of several runs differ by their models only, and the lines beside them are the same.
TEST_SEED, TRAINING_SEED = 1, 2
TRAINING_SAMPLES = 10_000  # at most so many training samples, evenly spaced, give μ, Σ and the means
LARGEST_DIM = 4096  # dimensions up to which Σ, dim × dim, is computed


class Gaussian(NamedTuple):
    """The Gaussian fit of the training data: mean (D,), Σ = U diag(λ) Uᵀ with eigenvalues λ (D,), basis U (D, D)."""

    mean: Tensor
    eigenvalues: Tensor
    basis: Tensor


class Statistics(NamedTuple):
    """Statistics of the training data in float64 on the CPU.

    means (C, D) are those of the classes, or that of all samples, (1, D); variance is averaged over the dimensions;
    gaussian is None above LARGEST_DIM dimensions.
    """

    means: Tensor
    variance: float
    gaussian: Gaussian | None


@torch.no_grad()
def denoising_errors(
    denoiser: ConditionedDenoiser,
    data: Dataset,
    *,
    levels: int,
    samples: int,
    batch_size: int,
    visited: Sequence[float],
) -> Denoising:
    """The errors at `levels` noise levels with equal ratios, from the smallest to the largest of the run's schedule.

    A model that knows the classes is compared with their means, any other with the mean of all training data. Sample i
    has the same noise at every level, in every run and at every batch size. Of a model that was trained at discrete
    levels, the nearest of these are taken.

    Args:
        denoiser: the model.
        data: the data set in the model's space.
        levels: number of noise levels, ≥ 2.
        samples: at most so many test samples, evenly spaced, ≥ 1.
        batch_size: samples per batch.
        visited: noise levels at which the run's sampler asks for D.
    """
    sigmas = sigmas_of(denoiser, levels)
    known = statistics(data, denoiser.num_classes, batch_size)
    device = denoiser.sigma_data.device
    squares = torch.zeros(len(sigmas), dtype=torch.float64)
    by_wiener = torch.zeros_like(squares)
    by_means, count = 0.0, 0
    for indices in evenly(len(data.test), samples).split(batch_size):
        batch = data.test[indices]
        sources = generators(TEST_SEED, indices.tolist())
        x0 = data.dequantize(batch.x, sources)
        noise = randn_like(x0.cpu(), sources)  # drawn on the CPU, so that it is the same on every device
        cond = denoiser.cond_of_batch(batch)
        clean, drawn = x0.to(device), noise.to(device)
        for i, sigma in enumerate(sigmas):
            denoised = denoiser(clean + sigma * drawn, clean.new_full((len(clean),), sigma), cond)
            squares[i] += (denoised - clean).double().square().sum().cpu()
        flat, flat_noise = (part.cpu().flatten(1).double() for part in (x0, noise))
        means = known.means[batch.label if len(known.means) > 1 else torch.zeros_like(batch.label)]
        by_means += float((means - flat).square().sum())
        if known.gaussian is not None:
            by_wiener += _wiener_squares(known.gaussian, flat, flat_noise, sigmas)
        count += flat.numel()
    return Denoising(
        sigma=tuple(sigmas),
        model=tuple((squares / count).tolist()),
        wiener=None if known.gaussian is None else tuple((by_wiener / count).tolist()),
        means=by_means / count,
        of_classes=len(known.means) > 1,
        variance=known.variance,
        visited=_nearest(sigmas, visited),
    )


def sigmas_of(denoiser: ConditionedDenoiser, levels: int) -> list[float]:
    """Noise levels with equal ratios over the range of the run's schedule, rising; trained ones, each once."""
    schedule = denoiser.sampling.schedule
    ends = (math.log(schedule.sigma_min), math.log(schedule.sigma_max))
    wanted = torch.linspace(*ends, levels, dtype=torch.float64).exp()
    wanted[0], wanted[-1] = schedule.sigma_min, schedule.sigma_max  # exactly
    return list(dict.fromkeys(denoiser.sampling.trained_levels.nearest(wanted).tolist()))


@torch.no_grad()
def statistics(data: Dataset, num_classes: int | None, batch_size: int) -> Statistics:
    """Mean, variance, covariance and class means of at most TRAINING_SAMPLES training samples, dequantised.

    num_classes: None for the mean of all samples in place of the classes'. A class without a sample has that mean too.
    """
    dim = math.prod(data.shape)
    classes = num_classes or 1
    sums, counts = torch.zeros(classes, dim, dtype=torch.float64), torch.zeros(classes, dtype=torch.float64)
    squares = torch.zeros(dim, dtype=torch.float64)
    outer = torch.zeros(dim, dim, dtype=torch.float64) if dim <= LARGEST_DIM else None
    for indices in evenly(len(data.train), TRAINING_SAMPLES).split(batch_size):
        batch = data.train[indices]
        x = data.dequantize(batch.x, generators(TRAINING_SEED, indices.tolist())).cpu().flatten(1).double()
        label = torch.zeros_like(batch.label) if num_classes is None else batch.label
        sums.index_add_(0, label, x)
        counts += torch.bincount(label, minlength=classes)
        squares += x.square().sum(0)
        if outer is not None:
            outer.addmm_(x.T, x)
    n = counts.sum()
    mean = sums.sum(0) / n
    means = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), mean)
    gaussian = None
    if outer is not None:
        eigenvalues, basis = torch.linalg.eigh(outer / n - torch.outer(mean, mean))
        gaussian = Gaussian(mean, eigenvalues.clamp(min=0.0), basis)  # rounding may turn a zero into −1e−17
    return Statistics(means, float((squares / n - mean.square()).mean()), gaussian)


def _wiener_squares(fit: Gaussian, x0: Tensor, noise: Tensor, sigmas: list[float]) -> Tensor:
    """Σ ‖W(x0 + σ·noise) − x0‖² for each σ, (levels,), of x0 and noise (n, D): computed in the basis U.

    There the filter multiplies each coordinate of x − μ by λ/(λ + σ²), and lengths are the same.
    """
    clean, drawn = (x0 - fit.mean) @ fit.basis, noise @ fit.basis
    found = []
    for sigma in sigmas:
        share = fit.eigenvalues / (fit.eigenvalues + sigma**2)
        found.append(((clean + sigma * drawn) * share - clean).square().sum())
    return torch.stack(found)


def _nearest(sigmas: Sequence[float], visited: Sequence[float]) -> tuple[bool, ...]:
    """Whether each of the rising noise levels is the nearest of them, in ln σ, to a level that is visited."""
    borders = torch.tensor([math.sqrt(a * b) for a, b in pairwise(sigmas)], dtype=torch.float64)
    nearest = set(torch.bucketize(torch.tensor(visited, dtype=torch.float64), borders).tolist())
    return tuple(i in nearest for i in range(len(sigmas)))
