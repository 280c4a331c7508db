"""Data behind a first stage, as whoever measures a density of latents sees them."""

from __future__ import annotations

from typing import Any

from torch import nn


class Encoded:
    """A data set whose samples are latents z = encode(x): of its own kind are shape and levels (none), and what
    `flowdiff.evaluation.data.readers.dequantised` makes of raw samples; splits hold the raw images.
    """

    levels = None

    def __init__(self, pixels: Any, first_stage: nn.Module) -> None:
        self.pixels = pixels
        self.first_stage = first_stage
        self.name = pixels.name
        self.num_classes = pixels.num_classes
        self.shape = first_stage.latent_shape
        self.train = pixels.train
        self.test = pixels.test


def encodes(denoiser: nn.Module) -> bool:
    """Whether a model lives in the latents of an autoencoder; one without a first stage lives where its data do."""
    first_stage = getattr(denoiser, "first_stage", None)
    return first_stage is not None and not first_stage.is_identity


def is_autoencoder(denoiser: nn.Module) -> bool:
    """Whether a model's network is an autoencoder itself."""
    return hasattr(getattr(denoiser, "network", None), "autoencoder")


def as_seen_by(denoiser: nn.Module, data: Any) -> Any:
    """The data in the space that a model lives in."""
    return Encoded(data, denoiser.first_stage) if encodes(denoiser) else data
