"""What a model draws, whatever its data are: samples, how they come about, what lies between two test samples.

What a model of latents draws is decoded.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowdiff.data.encoded import as_seen_by
from flowdiff.data.readers import centred, evenly
from flowdiff.evaluation.densities.autoencoding import autoencoder_of, device_of, reconstruct
from flowdiff.evaluation.densities.interpolation import POINTS, interpolate
from flowdiff.evaluation.pictures import plots as pictures

PICTURE_SEED = 1  # the pictures' samples: the same at every step, so that the eye compares models, not noise
SCATTERED = 2000  # points of a 2-D picture
ROWS = 10  # of a picture, at most
COLUMNS = 10  # of images beside each other


def draw_samples(denoiser: nn.Module, data: Any, path: Path) -> None:
    """The sample picture of a model: a grid, with classes in rows if it has some, or a scatter beside 2-D data."""
    if len(data.shape) == 1:
        samples = denoiser.sample(SCATTERED, seed=PICTURE_SEED)
        pictures.scatter(samples.cpu(), points_of(data), path)
        return
    classes = denoiser.num_classes
    rows, columns = min(classes or 8, ROWS), 10
    labels = [row for row in range(rows) for _ in range(columns)] if classes else None
    samples = denoiser.sample(rows * columns, seed=PICTURE_SEED, label=labels)
    row_labels = [str(row) for row in range(rows)] if classes else None
    pictures.sample_grid(data.to_uint8(samples.cpu()), path, columns=columns, row_labels=row_labels)


def draw_trajectory(denoiser: nn.Module, data: Any, path: Path) -> None:
    """The steps of the model's sampler from noise to samples."""
    steps: list[tuple[float, Tensor, Tensor]] = []
    n = SCATTERED if len(data.shape) == 1 else min(denoiser.num_classes or 8, ROWS)
    denoiser.sample(
        n, seed=PICTURE_SEED, batch_size=n, callback=lambda i, sigma, x, D: steps.append((sigma, x.cpu(), D.cpu()))
    )
    decode = denoiser.first_stage.decode

    def decoded(sigma: float, z: Tensor) -> Tensor:
        """What a decoder can make of noised latents: those of the size of clean ones, as the picture draws x_σ."""
        size = math.sqrt(1 + sigma**2)
        return z if denoiser.first_stage.is_identity else decode(z / size) * size

    pictures.trajectory([(sigma, decoded(sigma, x), decode(D)) for sigma, x, D in steps], path)


def draw_interpolation(denoiser: nn.Module, data: Any, sigma: float, path: Path) -> None:
    """Paths in z between two test samples each, one row or curve per class; raises as `interpolate` does."""
    pairs = min(data.num_classes or 8, ROWS)
    seen = as_seen_by(denoiser, data)
    found = interpolate(denoiser, seen, sigma, denoiser.cond_of, seed=PICTURE_SEED, batch_size=500, pairs=pairs)
    if len(data.shape) == 1:
        pictures.paths(found.curved.cpu(), points_of(data), path)
        return
    images = data.to_uint8(denoiser.first_stage.decode(found.curved.flatten(0, 1)).cpu())
    row_labels = [str(int(label)) for label in found.label] if data.num_classes else None
    title = "Between the test images at both ends, in z"
    pictures.sample_grid(images, path, columns=found.curved.shape[1], row_labels=row_labels, title=title)


def draw_reconstructions(denoiser: nn.Module, data: Any, path: Path) -> None:
    """Test images and, under each, what the autoencoder of this model makes of it."""
    x = centred(data, data.test[evenly(len(data.test), 4 * COLUMNS)].x)
    seen = reconstruct(autoencoder_of(denoiser), x, len(x))
    rows = [part for pair in zip(x.split(COLUMNS), seen.split(COLUMNS), strict=True) for part in pair]
    labels = ["x", "x̂"] * (len(rows) // 2)
    title = "Test images, each above its reconstruction"
    pictures.sample_grid(data.to_uint8(torch.cat(rows)), path, columns=COLUMNS, row_labels=labels, title=title)


@torch.no_grad()
def draw_latent_interpolation(denoiser: nn.Module, data: Any, path: Path) -> None:
    """Straight lines between the latents of two test images each, decoded: one pair a row."""
    autoencoder = autoencoder_of(denoiser)
    place = device_of(autoencoder)
    x = centred(data, data.test[evenly(len(data.test), 2 * ROWS)].x)
    ends = autoencoder.posterior(x.to(place)).mean  # (2P, *latent_shape)
    t = torch.linspace(0, 1, POINTS, device=place).view(1, -1, *[1] * (ends.ndim - 1))
    lines = (1 - t) * ends[::2, None] + t * ends[1::2, None]  # (P, T, *latent_shape)
    images = autoencoder.decode(lines.flatten(0, 1)).cpu()
    title = "Between the latents of two test images"
    pictures.sample_grid(data.to_uint8(images), path, columns=POINTS, title=title)


def points_of(data: Any) -> Tensor:
    """Points of the training split to draw beside samples, (N, D)."""
    return data.to_model(data.train[: min(SCATTERED, len(data.train))].x)
