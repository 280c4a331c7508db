"""A data set in the space of a model that works in the latents of an autoencoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowdiff.data.base import DataModule, Dataset
from flowdiff.diffusion.model import ConditionedDenoiser
from flowdiff.models.first_stage.base import FirstStage


class Encoded:
    """A dataset viewed in latent space: `shape` is the latent shape, `levels` is None; splits hold raw images.

    Args:
        data: the data set.
        first_stage: maps images to latents.
    """

    levels = None

    def __init__(self, data: DataModule, first_stage: FirstStage) -> None:
        self.data = data
        self.first_stage = first_stage
        self.name = data.name
        self.num_classes = data.num_classes
        self.shape = first_stage.latent_shape
        self.train = data.train
        self.test = data.test

    def dequantize(self, x_raw: Tensor, sources: Sequence[torch.Generator]) -> Tensor:
        """Latents (B, *shape) of dequantised images; dequantisation and encoding of an image share its generator."""
        return self.first_stage.encode(self.data.dequantize(x_raw, sources), sources)


def in_model_space(denoiser: ConditionedDenoiser, data: DataModule) -> Dataset:
    """The data in the space that the model works in: `data` itself, or a view in the latents of its autoencoder."""
    return data if denoiser.first_stage.is_identity else Encoded(data, denoiser.first_stage)
