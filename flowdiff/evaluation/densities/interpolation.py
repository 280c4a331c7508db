"""Between two test samples of a class, on the great circle of their base points:

    z_t = [sin((1 − t)θ)·z_a + sin(tθ)·z_b] / sin θ,    cos θ = ⟨z_a, z_b⟩ / (‖z_a‖·‖z_b‖),    x_t = f⁻¹(z_t; σ, c)

Points of N(0, I) lie near the sphere of radius √D, and so does all of the path: x_t stays as likely as its ends are. A
straight line in x leaves that shell, and ends where the density is higher and nothing lives: at the blur of both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flowdiff.data.readers import dequantised
from flowdiff.errors import DataError
from flowdiff.evaluation.densities.likelihood import mean_and_error, per_dimension
from flowdiff.models.conditioning import Conditioning
from flowdiff.noise import generators

POINTS = 9  # of a path, its ends among them


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
    denoiser: nn.Module,
    data: Any,
    sigma: float,
    cond_of: Callable[[Tensor], Conditioning | None],
    *,
    seed: int,
    batch_size: int,
    pairs: int,
) -> Paths:
    """Paths between dequantised test samples, as many pairs of every class, `pairs` in all or less, ordered by class.

    denoiser.network encodes and decodes as a ScoreFlow does. Raises InverseDidNotConverge where f⁻¹ does, DataError
    where no class has two test samples.
    """
    device = denoiser.sigma_data.device
    through = _Batches(sigma, cond_of, batch_size)
    ends = _pairs(data.test[torch.arange(len(data.test))].label, pairs)  # (P, 2)
    batch = data.test[ends.flatten()]
    x = dequantised(data, batch.x, generators(seed, ends.flatten().tolist())).to(device)
    label = batch.label[::2]
    t = torch.linspace(0, 1, POINTS, device=device)
    z = through(denoiser.network.encode, x, batch.label)
    circle = great_circle(z[::2].flatten(1), z[1::2].flatten(1), t)  # (P, T, D)
    every = label.repeat_interleave(POINTS)
    curved = through(denoiser.network.decode, circle.reshape(-1, *x.shape[1:]), every)
    weight = t.reshape(-1, *[1] * (x.ndim - 1))
    straight = (1 - weight) * x[::2, None] + weight * x[1::2, None]  # (P, T, *shape)
    return Paths(curved.view_as(straight), straight, label)


@torch.no_grad()
def likelihood_between(
    denoiser: nn.Module,
    data: Any,
    sigma: float,
    cond_of: Callable[[Tensor], Conditioning | None],
    *,
    seed: int,
    batch_size: int,
    pairs: int,
) -> Interpolation:
    """How likely the points between test samples are, the ends left out; raises as `interpolate` does."""
    paths = interpolate(denoiser, data, sigma, cond_of, seed=seed, batch_size=batch_size, pairs=pairs)
    through = _Batches(sigma, cond_of, batch_size)

    def of(points: Tensor) -> tuple[str, Tensor]:
        between = points[:, 1:-1].flatten(0, 1)
        log_prob = through(denoiser.log_prob, between, paths.label.repeat_interleave(POINTS - 2))
        return per_dimension(log_prob.view(len(points), -1).mean(1), between[0].numel(), data.levels)

    metric, curved = of(paths.curved)
    return Interpolation(metric, *mean_and_error(curved), of(paths.straight)[1].mean().item())


def great_circle(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Points (P, T, D) from a (P, D) to b (P, D) at t (T,) ∈ [0, 1], as above; a straight line where a ∥ b.

    Source: Shoemake, Animating rotation with quaternion curves, 1985.
    """
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    angle = cosine.clamp(-1, 1).acos()[:, None]  # (P, 1)
    flat = angle.sin() < 1e-3  # no great circle is the one between opposite points
    sine = torch.where(flat, 1, angle.sin())
    first = torch.where(flat, 1 - t, ((1 - t) * angle).sin() / sine)  # (P, T)
    second = torch.where(flat, t, (t * angle).sin() / sine)
    return first[..., None] * a[:, None] + second[..., None] * b[:, None]


class _Batches(NamedTuple):
    """Functions of (x, σ, cond), applied to points x (N, …) with classes (N,) at one σ, batch by batch."""

    sigma: float
    cond_of: Callable[[Tensor], Conditioning | None]
    batch_size: int

    def __call__(self, f: Callable[..., Tensor], x: Tensor, label: Tensor) -> Tensor:
        parts = zip(x.split(self.batch_size), label.to(x.device).split(self.batch_size), strict=True)
        return torch.cat([f(part, part.new_full((len(part),), self.sigma), self.cond_of(c)) for part, c in parts])


def _pairs(label: Tensor, most: int) -> Tensor:
    """Positions (P, 2) of two samples of one class each, no sample twice."""
    classes = label.unique()
    each = max(1, most // len(classes))
    members = [(label == c).nonzero()[:, 0] for c in classes]
    pairs = torch.cat([positions[: min(2 * each, len(positions) // 2 * 2)].view(-1, 2) for positions in members])
    if not len(pairs):
        raise DataError("no class has two test samples, so there is nothing to interpolate between.")
    return pairs
