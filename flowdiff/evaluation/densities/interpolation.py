"""Interpolation between two test samples of a class, on the great circle of their base points.

    z_t = [sin((1 − t)θ)·z_a + sin(tθ)·z_b] / sin θ,    cos θ = ⟨z_a, z_b⟩ / (‖z_a‖·‖z_b‖),    x_t = f⁻¹(z_t; σ, c)

Points of N(0, I) lie near the sphere of radius √D, and so does the whole path: x_t stays as likely as its ends are. A
straight line in x leaves that shell for a region of higher density that holds no samples: the blur of both ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from flowdiff.data.base import Dataset
from flowdiff.diffusion.model import ConditionedDenoiser
from flowdiff.errors import DataError
from flowdiff.evaluation.densities.likelihood import mean_and_error, per_dimension
from flowdiff.models.networks.base import FlowDensity
from flowdiff.noise import generators

POINTS = 9  # of a path, including its ends


class Paths(NamedTuple):
    """P paths of T points each between the same ends: curved in x and straight in x, (P, T, *shape); classes (P,)."""

    curved: Tensor
    straight: Tensor
    label: Tensor


class Interpolation(NamedTuple):
    """Mean negative log-likelihood between the ends and its standard error over the paths, in the unit of `metric`."""

    metric: str  # "bpd" (bits per dimension) or "nats_per_dim"
    mean: float
    standard_error: float
    straight: float  # the mean on straight lines in x


@torch.no_grad()
def interpolate(
    denoiser: ConditionedDenoiser, data: Dataset, sigma: float, *, seed: int, batch_size: int, pairs: int
) -> Paths:
    """Paths between dequantised test samples, ordered by class.

    Args:
        denoiser: a model whose network is a FlowDensity.
        data: the data set in the model's space.
        sigma: noise level of the flow.
        seed: the dequantisation of sample i depends on (seed, i) only.
        batch_size: samples per batch.
        pairs: number of paths at most, the same number for every class that has enough samples.

    Raises:
        InverseDidNotConverge: the flow's inverse did not converge.
        DataError: no class has two test samples.
    """
    network = denoiser.network
    assert isinstance(network, FlowDensity)  # the callers check this
    device = denoiser.sigma_data.device
    ends = _pairs(data.test[torch.arange(len(data.test))].label, pairs)  # (P, 2)
    batch = data.test[ends.flatten()]
    x = data.dequantize(batch.x, generators(seed, ends.flatten().tolist())).to(device)
    label = batch.label[::2]
    t = torch.linspace(0, 1, POINTS, device=device)
    z = _in_batches(network.encode, denoiser, x, batch.label, sigma, batch_size)
    circle = great_circle(z[::2].flatten(1), z[1::2].flatten(1), t)  # (P, T, D)
    labels = label.repeat_interleave(POINTS)
    curved = _in_batches(network.decode, denoiser, circle.reshape(-1, *x.shape[1:]), labels, sigma, batch_size)
    weight = t.reshape(-1, *[1] * (x.ndim - 1))
    straight = (1 - weight) * x[::2, None] + weight * x[1::2, None]  # (P, T, *shape)
    return Paths(curved.view_as(straight), straight, label)


@torch.no_grad()
def likelihood_between(
    denoiser: ConditionedDenoiser, data: Dataset, sigma: float, *, seed: int, batch_size: int, pairs: int
) -> Interpolation:
    """Likelihood of the points between test samples, without the ends; arguments and errors as for `interpolate`."""
    paths = interpolate(denoiser, data, sigma, seed=seed, batch_size=batch_size, pairs=pairs)

    def measure(points: Tensor) -> tuple[str, Tensor]:
        between = points[:, 1:-1].flatten(0, 1)
        labels = paths.label.repeat_interleave(POINTS - 2)
        log_prob = _in_batches(denoiser.log_prob, denoiser, between, labels, sigma, batch_size)
        return per_dimension(log_prob.view(len(points), -1).mean(1), between[0].numel(), data.levels)

    metric, curved = measure(paths.curved)
    _, straight = measure(paths.straight)
    return Interpolation(metric, *mean_and_error(curved), straight.mean().item())


def great_circle(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Points z_t (P, T, D) from a (P, D) to b (P, D) at t (T,) ∈ [0, 1]; a straight line if a and b are parallel.

    Source: Shoemake, Animating rotation with quaternion curves, 1985.
    """
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    angle = cosine.clamp(-1, 1).acos()[:, None]  # (P, 1)
    flat = angle.sin() < 1e-3  # between opposite points no great circle is distinguished
    sine = torch.where(flat, 1, angle.sin())
    first = torch.where(flat, 1 - t, ((1 - t) * angle).sin() / sine)  # (P, T)
    second = torch.where(flat, t, (t * angle).sin() / sine)
    return first[..., None] * a[:, None] + second[..., None] * b[:, None]


def _in_batches(
    function: Callable[..., Tensor],
    denoiser: ConditionedDenoiser,
    x: Tensor,
    label: Tensor,
    sigma: float,
    batch_size: int,
) -> Tensor:
    """function(x, σ, cond) of points x (N, …) with classes (N,) at one σ, batch by batch."""
    batches = zip(x.split(batch_size), label.split(batch_size), strict=True)
    return torch.cat([function(part, part.new_full((len(part),), sigma), denoiser.cond_of(c)) for part, c in batches])


def _pairs(label: Tensor, most: int) -> Tensor:
    """Positions (P, 2) of two samples of the same class, each sample in at most one pair."""
    classes = label.unique()
    each = max(1, most // len(classes))
    members = [(label == c).nonzero()[:, 0] for c in classes]
    pairs = torch.cat([positions[: min(2 * each, len(positions) // 2 * 2)].view(-1, 2) for positions in members])
    if not len(pairs):
        raise DataError("no class has two test samples, so there is nothing to interpolate between.")
    return pairs
