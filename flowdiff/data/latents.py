"""Data as an autoencoder sees them: each image encoded once, and a new latent drawn from its posterior each time.

    kept, for every image     m(x), v(x)                          of q(ℓ|x) = N(m, e^v)
    drawn in training         z = (m + e^{v/2}·ε − shift)·scale,  ε ~ N(0, I)

What is kept is a file of float32 numbers below the first stage's cache_dir, mapped to memory and read where it is
needed, under a name that holds a hash of the autoencoder's weights, the data and how images come to be encoded. It
grows chunk by chunk under another name, and gets its own when it is whole: encoding that was interrupted goes on where
it was.

Of an autoencoder that is trained nothing can be kept: its latents are encoded anew whenever they are asked for.
"""

from __future__ import annotations

import fcntl
import logging
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor

from flowdiff.data.base import DataModule, Split
from flowdiff.data.pixels import Pixels
from flowdiff.data.readers import centred
from flowdiff.digests import digest, fingerprint
from flowdiff.errors import ConfigurationError, DataError
from flowdiff.models.first_stage.base import AutoencoderStage, FirstStage
from flowdiff.models.autoencoder.posterior import Posterior
from flowdiff.progress import counting

log = logging.getLogger(__name__)

VERSION = 1  # of how images come to be encoded: part of the hash


def as_seen_by(first_stage: FirstStage, data: DataModule) -> DataModule:
    """What a model behind this first stage lives among: the data themselves where it is the identity."""
    if first_stage.is_identity:
        return data
    return FreshLatents(data, first_stage) if first_stage.trained else LatentData(data, first_stage)


class OfLatents(DataModule, ABC):
    """A data set's images, of which `to_model` makes latents z of a first stage."""

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
        """Those of the training split as they are, views and all, in order."""

    def _views(self, x_raw: Tensor) -> list[Tensor]:
        x = centred(self.data.values, x_raw)
        return [x, x.flip(-1)][: self.num_views]


@final
class LatentData(OfLatents):
    """The posteriors of a data set's images, (V, 2, *latent_shape) a sample: m and v, of V = 2 views if images are
    mirrored at random in training, of the image alone otherwise; `to_model` makes z of them.

    Images are encoded at the midpoint of their grey levels, when `setup` first needs them; that raises DataError or
    ConfigurationError where cache_dir cannot hold them.
    """

    def __init__(self, data: DataModule, first_stage: AutoencoderStage) -> None:
        super().__init__(data, first_stage, Moments(first_stage))
        self.shape = (self.num_views, 2, *first_stage.latent_shape)

    def load(self) -> tuple[Split, Split]:
        self.data.setup()
        return self._encoded("train"), self._encoded("test")

    def posteriors(self, batch_size: int) -> Iterator[Posterior]:
        for start in range(0, len(self.train), batch_size):
            yield Posterior(*self.train[start : start + batch_size].x.flatten(0, 1).unbind(1))

    def _encoded(self, which: str) -> LatentSplit:
        split = getattr(self.data, which)
        about = self.first_stage.key(), fingerprint(split), self.data.levels, list(self.shape), VERSION
        folder = self.first_stage.cache_dir
        path = folder / f"{self.name}-{which}-{digest(*about)}.f32"
        _make(folder)
        with _alone(path.with_suffix(".lock")):  # of several runs that want the same, one encodes
            if not path.is_file():
                self._encode(split, path, f"encoding {self.name} ({which})")
        return LatentSplit(path, (len(split), *self.shape), split.label)

    def _encode(self, split: Split, path: Path, what: str) -> None:
        """Append to what is there of an earlier attempt until all is there."""
        partial = path.with_suffix(".partial")
        size = 4 * math.prod(self.shape)  # bytes a sample
        try:
            with partial.open("ab") as file, counting(what) as progress:
                done = file.tell() // size
                if done:
                    log.info("%s goes on at %s of %s images", what, f"{done:,}", f"{len(split):,}")
                file.truncate(done * size)  # less what the last write left of a sample
                for start in range(done, len(split), self.first_stage.chunk_size):
                    file.write(self._moments(split[start : start + self.first_stage.chunk_size].x).tobytes())
                    progress(min(start + self.first_stage.chunk_size, len(split)), len(split))
            os.replace(partial, path)
        except OSError as error:
            raise _cannot_write(path.parent, error) from error

    def _moments(self, x_raw: Tensor) -> np.ndarray:
        posteriors = (self.first_stage.posterior(view) for view in self._views(x_raw))
        return torch.stack([torch.stack(moments, 1) for moments in posteriors], 1).numpy()  # (B, V, 2, *latent_shape)


@final
class FreshLatents(OfLatents):
    """Raw images, which are encoded by the autoencoder as it is now; before it is trained this is as LatentData."""

    def __init__(self, data: DataModule, first_stage: AutoencoderStage) -> None:
        super().__init__(data, first_stage, Images(first_stage, data.values))
        self.shape = data.shape

    def load(self) -> tuple[Split, Split]:
        self.data.setup()
        return self.data.train, self.data.test

    def posteriors(self, batch_size: int) -> Iterator[Posterior]:
        for start in range(0, len(self.train), batch_size):
            yield from map(self.first_stage.posterior, self._views(self.train[start : start + batch_size].x))


@dataclass(frozen=True)
class LatentValues(ABC):
    """What the numbers of a sample mean to a model of latents: `to_model` draws z of them."""

    first_stage: AutoencoderStage
    levels: ClassVar[None] = None

    @abstractmethod
    def to_model(self, x: Tensor, generator: torch.Generator | None = None, train: bool = False) -> Tensor:
        """z (B, *latent_shape), float32, of raw samples; mirrored at random only when `train`, if at all."""

    def quantize(self, x: Tensor) -> Tensor:
        """x itself: latents have no levels."""
        return x

    def to_uint8(self, x: Tensor) -> Tensor:
        """Refused with ConfigurationError: a latent is no picture."""
        raise ConfigurationError("latents have no pixels to save as uint8: decode them first.")


@final
@dataclass(frozen=True)
class Moments(LatentValues):
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
class Images(LatentValues):
    """Grey levels (B, C, H, W), encoded at their midpoints, or dequantised when `train`."""

    pixels: Pixels

    def to_model(self, x: Tensor, generator: torch.Generator | None = None, train: bool = False) -> Tensor:
        image = self.pixels.to_model(x, generator, train) if train else centred(self.pixels, x)
        return self.first_stage.encode(image, generator)


@final
class LatentSplit(Split):
    """Moments in a file of float32, (n, V, 2, *latent_shape), mapped to memory in each process that reads it."""

    def __init__(self, path: Path, shape: tuple[int, ...], label: Tensor) -> None:
        super().__init__(label)
        self.path = path
        self.shape = shape
        there = path.stat().st_size
        if there != 4 * math.prod(shape):
            raise DataError(f"{path} holds {there:,} bytes where {4 * math.prod(shape):,} are expected: delete it.")

    @cached_property
    def moments(self) -> np.memmap:
        """All of them, on disk."""
        return np.memmap(self.path, dtype=np.float32, mode="r", shape=self.shape)

    def read(self, indices: Tensor) -> Tensor:
        return torch.from_numpy(np.asarray(self.moments[indices.numpy()]))

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "moments"}


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(folder, error) from error


def _cannot_write(folder: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"first_stage.cache_dir: {folder} cannot be written ({error.strerror}): make room, or name another folder "
        "there."
    )


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, once nobody else does; it is let go of when the process ends, too."""
    try:
        file = path.open("w")
    except OSError as error:
        raise _cannot_write(path.parent, error) from error
    with file:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
