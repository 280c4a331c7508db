"""The pictures of a model: samples, the steps of its sampler, and interpolations between test samples.

Latents are decoded before they are drawn. Where a function takes a batch_size, the model sees at most so many samples
at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from flowdiff.data.base import DataModule
from flowdiff.data.encoded import in_model_space
from flowdiff.data.readers import evenly
from flowdiff.diffusion.model import ConditionedDenoiser
from flowdiff.evaluation.densities.autoencoding import device_of, reconstruct
from flowdiff.evaluation.densities.interpolation import POINTS, interpolate
from flowdiff.evaluation.pictures import plots

PICTURE_SEED = 1  # seed of the samples, the same at every step: pictures differ by the model, not by the noise
SCATTERED = 2000  # points in a 2-D picture
ROWS = 10  # rows of a picture, at most
COLUMNS = 10  # images in a row
HINTED = 50  # samples in a picture that also shows their hints, at most


def draw_samples(denoiser: ConditionedDenoiser, data: DataModule, path: Path, batch_size: int) -> None:
    """Samples of a model: a grid of images, one class per row if it has classes, or a scatter plot beside the data.

    Of a model that reads hints each image is beside its hint.
    """
    if len(data.shape) == 1:
        samples = denoiser.sample(SCATTERED, seed=PICTURE_SEED, batch_size=batch_size)
        plots.scatter(samples.cpu(), points_of(data), path)
        return
    if denoiser.hinting is not None:
        asked = denoiser.hints(HINTED)
        samples = denoiser.sample(HINTED, seed=PICTURE_SEED, batch_size=batch_size).cpu()
        draw_beside_hints(denoiser, asked, data.to_uint8(samples), path, denoiser.prompts(HINTED) or [])
        return
    classes, prompts = denoiser.num_classes, denoiser.conditioner.examples()
    rows, columns = min(len(prompts) or classes or 8, ROWS), COLUMNS
    of_rows = denoiser.conditioner.example_classes() if prompts else range(classes or 0)
    labels = [of_rows[row] for row in range(rows) for _ in range(columns)] if of_rows else None
    texts = [prompts[row] for row in range(rows) for _ in range(columns)] if prompts else None
    samples = denoiser.sample(rows * columns, seed=PICTURE_SEED, label=labels, prompt=texts, batch_size=batch_size)
    row_labels = list(prompts[:rows]) or ([str(row) for row in range(rows)] if classes else None)
    images = data.to_uint8(samples.cpu())
    plots.sample_grid(images, path, columns=columns, row_labels=row_labels, prompts=prompts[:rows])


def draw_beside_hints(
    denoiser: ConditionedDenoiser, hints: Tensor | None, images: Tensor, path: Path, prompts: Sequence[str] = ()
) -> None:
    """A grid of up to HINTED images, each behind the hints that it was drawn for.

    Args:
        denoiser: the model.
        hints: (n, C, H, W) in [-1, 1], those of the model.
        images: samples, uint8 (n, 1 or 3, H, W).
        path: the file.
        prompts: the text of each sample, for the metadata; empty without.
    """
    assert hints is not None  # callers ask for denoiser.hinting first
    assert denoiser.hinting is not None
    shown = ((hints[:HINTED].cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    parts = [*shown.split([make.channels for make in denoiser.hinting.makers], 1), images[:HINTED]]
    row = torch.stack([part.expand(-1, 3, -1, -1) for part in parts], 1)  # (n, hints + 1, 3, H, W)
    columns = len(parts) * max(1, COLUMNS // len(parts))
    title = "Each sample beside its hint" if len(parts) == 2 else "Each sample beside its hints"
    plots.sample_grid(row.flatten(0, 1), path, columns=columns, title=title, prompts=prompts[:HINTED])


def draw_trajectory(denoiser: ConditionedDenoiser, data: DataModule, path: Path) -> None:
    """The steps of the model's sampler from noise to samples."""
    steps: list[tuple[float, Tensor, Tensor]] = []
    n = SCATTERED if len(data.shape) == 1 else min(denoiser.num_classes or 8, ROWS)
    denoiser.sample(
        n, seed=PICTURE_SEED, batch_size=n, callback=lambda i, sigma, x, D: steps.append((sigma, x.cpu(), D.cpu()))
    )
    decode = denoiser.first_stage.decode

    def decoded(sigma: float, z: Tensor) -> Tensor:
        """Noised latents, scaled to the size of clean ones for the decoder; the picture divides x_σ by it again."""
        size = math.sqrt(1 + sigma**2)
        return z if denoiser.first_stage.is_identity else decode(z / size) * size

    plots.trajectory([(sigma, decoded(sigma, x), decode(D)) for sigma, x, D in steps], path)


def draw_interpolation(
    denoiser: ConditionedDenoiser, data: DataModule, sigma: float, path: Path, batch_size: int
) -> None:
    """Paths in z between two test samples of a class, one row or curve per class; raises as `interpolate` does."""
    pairs = min(data.num_classes or 8, ROWS)
    seen = in_model_space(denoiser, data)
    found = interpolate(denoiser, seen, sigma, seed=PICTURE_SEED, batch_size=batch_size, pairs=pairs)
    if len(data.shape) == 1:
        plots.paths(found.curved.cpu(), points_of(data), path)
        return
    images = data.to_uint8(denoiser.first_stage.decode(found.curved.flatten(0, 1)).cpu())
    row_labels = [str(int(label)) for label in found.label] if data.num_classes else None
    title = "Between the test images at both ends, in z"
    plots.sample_grid(images, path, columns=found.curved.shape[1], row_labels=row_labels, title=title)


def draw_reconstructions(denoiser: ConditionedDenoiser, data: DataModule, path: Path, batch_size: int) -> None:
    """Test images, each above its reconstruction by the model's autoencoder."""
    assert denoiser.autoencoder is not None  # callers ask for it first
    x = data.centre(data.test[evenly(len(data.test), 4 * COLUMNS)].x)
    seen = reconstruct(denoiser.autoencoder, x, batch_size)
    rows = [part for pair in zip(x.split(COLUMNS), seen.split(COLUMNS), strict=True) for part in pair]
    labels = ["x", "x̂"] * (len(rows) // 2)
    title = "Test images, each above its reconstruction"
    plots.sample_grid(data.to_uint8(torch.cat(rows)), path, columns=COLUMNS, row_labels=labels, title=title)


@torch.no_grad()
def draw_latent_interpolation(denoiser: ConditionedDenoiser, data: DataModule, path: Path) -> None:
    """Straight lines between the latents of two test images, decoded, one pair per row."""
    autoencoder = denoiser.autoencoder
    assert autoencoder is not None  # callers ask for it first
    place = device_of(autoencoder)
    x = data.centre(data.test[evenly(len(data.test), 2 * ROWS)].x)
    ends = autoencoder.posterior(x.to(place)).mean  # (2P, *latent_shape)
    t = torch.linspace(0, 1, POINTS, device=place).view(1, -1, *[1] * (ends.ndim - 1))
    lines = (1 - t) * ends[::2, None] + t * ends[1::2, None]  # (P, T, *latent_shape)
    images = autoencoder.decode(lines.flatten(0, 1)).cpu()
    title = "Between the latents of two test images"
    plots.sample_grid(data.to_uint8(images), path, columns=POINTS, title=title)


def points_of(data: DataModule) -> Tensor:
    """Points of the training split to draw beside samples, (N, D)."""
    return data.to_model(data.train[: min(SCATTERED, len(data.train))].x)
