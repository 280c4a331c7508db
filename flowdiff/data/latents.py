"""The training data of a model of latents: images encoded once and kept on disk, or encoded again in every batch.

    kept for every image      m(x), v(x)                          of q(ℓ|x) = N(m, e^v)
    drawn in training         z = (m + e^{v/2}·ε − shift)·scale,  ε ~ N(0, I)

The moments are kept in a file of float32 numbers below the first stage's cache_dir, which is mapped to memory. Its name
holds a hash of the autoencoder's weights, the data and the method of encoding. The file grows chunk by chunk under a
temporary name and gets its own name when it is complete, so interrupted encoding continues where it stopped.

An autoencoder that is trained changes its latents at every step, so nothing is kept: each batch is encoded again.
"""

from __future__ import annotations

import logging
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor

from flowdiff.data.base import Captions, DataModule, Split
from flowdiff.data.pixels import Values, centred
from flowdiff.digests import digest
from flowdiff.errors import ConfigurationError, DataError, RunError
from flowdiff.models.autoencoder.posterior import Posterior
from flowdiff.models.first_stage.base import AutoencoderStage, FirstStage
from flowdiff.progress import counting
from flowdiff.runs.files import file_lock

log = logging.getLogger(__name__)

VERSION = 1  # of the method of encoding, part of the hash: increase it when the method changes


def latent_data(first_stage: FirstStage, data: DataModule) -> DataModule:
    """The data that a model behind this first stage trains on: `data` itself if it is the identity, else `Latents`."""
    if first_stage.is_identity:
        return data
    if not isinstance(first_stage, AutoencoderStage):
        raise TypeError(f"{type(first_stage).__name__} is neither the identity nor an AutoencoderStage.")
    return FreshLatents(data, first_stage) if first_stage.trained else CachedLatents(data, first_stage)


class Latents(DataModule, ABC):
    """The images of a data set, which `to_model` maps to latents z of a first stage.

    Args:
        data: the data set.
        first_stage: the autoencoder.
        values: what the raw samples of this module mean.
    """

    def __init__(self, data: DataModule, first_stage: AutoencoderStage, values: LatentValues) -> None:
        super().__init__(values, data.batch_size, data.num_workers)
        self.data = data
        self.first_stage = first_stage
        self.name = data.name
        self.num_classes = data.num_classes
        self.num_views = 2 if data.values.flip else 1

    def prepare_data(self) -> None:
        self.data.prepare_data()

    @abstractmethod
    def posteriors(self, batch_size: int) -> Iterator[Posterior]:
        """The current posteriors of the training split, in order, mirrored images included."""

    def _views(self, x_raw: Tensor) -> list[Tensor]:
        x = self.data.centre(x_raw)
        return [x, x.flip(-1)][: self.num_views]


@final
class CachedLatents(Latents):
    """Posteriors of a frozen autoencoder, kept on disk: raw samples are moments m and v, (V, 2, *latent_shape).

    There are V = 2 views, the image and its mirror image, if training mirrors images at random, and 1 otherwise.
    Images are encoded at the midpoints of their grey levels, at the first `setup`.

    Args:
        data: the data set.
        first_stage: the frozen autoencoder; its cache_dir holds the moments.

    Raises:
        DataError: `setup`: a file in cache_dir has the wrong size.
        ConfigurationError: `setup`: cache_dir cannot be written.
    """

    def __init__(self, data: DataModule, first_stage: AutoencoderStage) -> None:
        super().__init__(data, first_stage, MomentValues(first_stage))
        self.shape = (self.num_views, 2, *first_stage.latent_shape)

    def load(self) -> tuple[Split, Split]:
        self.data.setup()
        return self._encoded("train", self.data.train), self._encoded("test", self.data.test)

    def posteriors(self, batch_size: int) -> Iterator[Posterior]:
        for start in range(0, len(self.train), batch_size):
            yield Posterior(*self.train[start : start + batch_size].x.flatten(0, 1).unbind(1))

    def _encoded(self, which: str, split: Split) -> LatentSplit:
        about = self.first_stage.key(), split.fingerprint(), self.data.levels, list(self.shape), VERSION
        folder = self.first_stage.cache_dir
        path = folder / f"{self.name}-{which}-{digest(*about)}.f32"
        with _naming_the_setting(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with file_lock(path.with_suffix(".lock")):  # only one of several runs encodes
                if not path.is_file():
                    self._encode(split, path, f"encoding {self.name} ({which})")
        return LatentSplit(path, (len(split), *self.shape), split.label, split.captions)

    def _encode(self, split: Split, path: Path, what: str) -> None:
        """Append to the file of an earlier attempt until it is complete, then give it its name."""
        partial = path.with_suffix(".partial")
        size = 4 * math.prod(self.shape)  # bytes per sample
        with partial.open("ab") as file, counting(what) as progress:
            done = file.tell() // size
            if done:
                log.info("%s continues at %s of %s images", what, f"{done:,}", f"{len(split):,}")
            file.truncate(done * size)  # remove a sample that was not written completely
            for start in range(done, len(split), self.first_stage.chunk_size):
                file.write(self._moments(split[start : start + self.first_stage.chunk_size].x).tobytes())
                progress(min(start + self.first_stage.chunk_size, len(split)), len(split))
        os.replace(partial, path)

    def _moments(self, x_raw: Tensor) -> np.ndarray:
        posteriors = (self.first_stage.posterior(view) for view in self._views(x_raw))
        found = torch.stack([torch.stack(moments, 1) for moments in posteriors], 1)  # (B, V, 2, *latent_shape)
        if not bool(found.isfinite().all()):
            raise DataError(
                f"the autoencoder of first_stage encodes images of {self.name} to latents that are not finite: give"
                " the run of another autoencoder."
            )
        return found.numpy()


@final
class FreshLatents(Latents):
    """Raw images, encoded by an autoencoder that is being trained; before its first step they equal CachedLatents.

    Args:
        data: the data set.
        first_stage: the autoencoder in training.
    """

    def __init__(self, data: DataModule, first_stage: AutoencoderStage) -> None:
        super().__init__(data, first_stage, ImageValues(first_stage, data.values))
        self.shape = data.shape

    def load(self) -> tuple[Split, Split]:
        self.data.setup()
        return self.data.train, self.data.test

    def posteriors(self, batch_size: int) -> Iterator[Posterior]:
        for start in range(0, len(self.train), batch_size):
            yield from map(self.first_stage.posterior, self._views(self.train[start : start + batch_size].x))


@dataclass(frozen=True)
class LatentValues(ABC):
    """What raw samples mean to a model of latents: `to_model` maps them to z."""

    first_stage: AutoencoderStage
    levels: ClassVar[None] = None
    flip: ClassVar[bool] = False  # `to_model` mirrors where the data do

    @abstractmethod
    def to_model(self, x: Tensor, generator: torch.Generator | None = None, train: bool = False) -> Tensor:
        """z (B, *latent_shape), float32, of raw samples; mirrored at random only when `train`."""

    def quantize(self, x: Tensor) -> Tensor:
        """x itself: latents have no levels."""
        return x

    def to_uint8(self, x: Tensor) -> Tensor:
        """Raises ConfigurationError: a latent is not a picture."""
        raise ConfigurationError("latents have no pixels to save as uint8: decode them first.")


@final
@dataclass(frozen=True)
class MomentValues(LatentValues):
    """The moments of posteriors, (B, V, 2, *latent_shape)."""

    def to_model(self, x: Tensor, generator: torch.Generator | None = None, train: bool = False) -> Tensor:
        view = x[:, 0]
        if train and x.shape[1] > 1:
            heads = torch.rand(len(x), generator=generator, device=None if generator is None else generator.device)
            view = x[torch.arange(len(x), device=x.device), (heads < 0.5).long().to(x.device)]
        posterior = Posterior(*view.unbind(1))
        noise = torch.randn(
            posterior.mean.shape, generator=generator, device=None if generator is None else generator.device
        )
        return self.first_stage.scaled(posterior.sample(noise.to(x.device)))


@final
@dataclass(frozen=True)
class ImageValues(LatentValues):
    """Grey levels (B, C, H, W): encoded at their midpoints, or dequantised first when `train`."""

    images: Values

    def to_model(self, x: Tensor, generator: torch.Generator | None = None, train: bool = False) -> Tensor:
        image = self.images.to_model(x, generator, train) if train else centred(self.images, x)
        return self.first_stage.encode(image, generator)


@final
class LatentSplit(Split):
    """Moments in a file of float32, (n, V, 2, *latent_shape), which each process maps to memory."""

    is_checked = True

    def __init__(self, path: Path, shape: tuple[int, ...], label: Tensor, captions: Captions | None = None) -> None:
        super().__init__(label, captions)
        self.path = path
        self.shape = shape
        found, expected = path.stat().st_size, 4 * math.prod(shape)
        if found != expected:
            raise DataError(f"{path} holds {found:,} bytes where {expected:,} are expected: delete it.")

    @cached_property
    def moments(self) -> np.memmap:
        """All moments, on disk."""
        return np.memmap(self.path, dtype=np.float32, mode="r", shape=self.shape)

    def read(self, indices: Tensor) -> Tensor:
        return torch.from_numpy(np.asarray(self.moments[indices.numpy()]))

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "moments"}


@contextmanager
def _naming_the_setting(folder: Path) -> Iterator[None]:
    """Turn an error of the file system into a ConfigurationError that names first_stage.cache_dir."""
    try:
        yield
    except (OSError, RunError) as error:
        cause = error.__cause__ if isinstance(error, RunError) else error
        reason = cause.strerror if isinstance(cause, OSError) else error
        raise ConfigurationError(
            f"first_stage.cache_dir: {folder} cannot be written ({reason}): make room, or name another folder there."
        ) from error
