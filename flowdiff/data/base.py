"""Data sets: splits that return whole batches by index, and an endless training stream that can start at any step.

The training stream is one long sequence of sample indices, the permutations of the epochs one after the other:

    stream(p) = π_{p div n}(p mod n),    π_e a permutation of {0, …, n-1} drawn from (seed, e) alone.

Batch k of rank r of W ranks is stream(p) for p = (kW + r)B, …, (kW + r)B + B - 1. Batches cross epoch
borders, so every batch has B samples, every sample occurs once per epoch, and batch k depends on (seed, k)
alone: a run that resumes at step k gets the same batch as an uninterrupted run.
"""

from __future__ import annotations

import functools
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, final

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from flowdiff.data.pixels import Values, centred
from flowdiff.data.workers import SignalBlockingContext, exit_on_parent_signal
from flowdiff.digests import digest
from flowdiff.errors import ConfigurationError, DataError
from flowdiff.noise import step_generator

# First counter of the shuffling generator. Training steps count from 0, so they never draw the same numbers.
SHUFFLE = -1
CHECKED = 4096  # samples that are searched for NaN at a time


class Batch(NamedTuple):
    """Samples with what is known about them.

    Attributes:
        x: raw samples (B, …), uint8 levels or float32 vectors.
        label: classes, int64 (B,); all 0 without labels.
        captions: the captions of each sample, one or more; None without captions.
    """

    x: Tensor
    label: Tensor
    captions: Sequence[Sequence[str]] | None = None


@final
class Captions:
    """The captions of n samples; each text is kept once.

    Args:
        captions: one or more captions of each sample.
    """

    def __init__(self, captions: Iterable[Sequence[str]]) -> None:
        table: dict[str, int] = {}
        self.rows = [tuple(table.setdefault(text, len(table)) for text in texts) for texts in captions]
        self.texts = tuple(table)

    def classes(self, label: Tensor) -> list[int]:
        """The class of the first sample that each text belongs to, given the classes (n,) of the samples."""
        found: dict[int, int] = {}
        for texts, value in zip(self.rows, label.tolist(), strict=True):
            for text in texts:
                found.setdefault(text, value)
        return [found[i] for i in range(len(self.texts))]

    def of(self, indices: Iterable[int]) -> list[tuple[str, ...]]:
        """The captions of some samples."""
        return [tuple(self.texts[i] for i in self.rows[index]) for index in indices]


class Split(TorchDataset[Batch], ABC):
    """Samples that are read many at a time: `split[indices]` is a Batch.

    `indices` is a LongTensor or list of positions in 0…n-1, a slice, or one integer, which gives a batch of one.

    Args:
        label: classes, int64 (n,); all 0 without labels.
        captions: the captions of the samples; None without captions.
    """

    is_checked = False  # whether its values were found to be finite when they were written

    def __init__(self, label: Tensor, captions: Captions | None = None) -> None:
        self.label = label
        self.captions = captions

    @abstractmethod
    def read(self, indices: Tensor) -> Tensor:
        """The raw samples at positions `indices`, int64 (B,): (B, …)."""

    @final
    def __len__(self) -> int:
        return len(self.label)

    @final
    def __getitem__(self, indices: Tensor | Sequence[int] | slice | int) -> Batch:
        if isinstance(indices, slice):
            indices = range(*indices.indices(len(self)))
        if not isinstance(indices, Tensor):
            indices = torch.tensor(indices, dtype=torch.int64)
        indices = indices.reshape(-1)
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"an index is outside 0…{len(self) - 1}.")
        captions = None if self.captions is None else self.captions.of(indices.tolist())
        return Batch(self.read(indices), self.label[indices], captions)

    @final
    def fingerprint(self) -> str:
        """Hash of the number of samples and of at most 1,024 samples and labels, evenly spaced."""
        x, label, _ = self[torch.linspace(0, len(self) - 1, min(len(self), 1024)).round().long()]
        return digest(len(self), list(x.shape), x.cpu().numpy().tobytes(), label.cpu().numpy().tobytes())


@final
class TensorSplit(Split):
    """A split in memory.

    Args:
        x: raw samples (n, …).
        label: classes (n,), or None without labels.
    """

    def __init__(self, x: Tensor, label: Tensor | None = None) -> None:
        super().__init__(torch.zeros(len(x), dtype=torch.int64) if label is None else label.long())
        self.x = x

    def read(self, indices: Tensor) -> Tensor:
        return self.x.index_select(0, indices)


def held_out(n: int, num_test: int) -> tuple[Tensor, Tensor]:
    """Positions 0…n-1 split into (train, test) by a fixed permutation that does not depend on the run's seed."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    return order[num_test:].sort().values, order[:num_test].sort().values


def of_classes(label: Tensor, classes: Sequence[int] | None, num_per_class: int | None = None) -> Tensor:
    """Positions in ascending order of the samples of these classes, at most the first num_per_class of each.

    Args:
        label: the class of each sample, (N,).
        classes: the classes; None for all.
        num_per_class: samples of each class, ≥ 1; None for all.
    """
    kept = [(label == k).nonzero()[:, 0][:num_per_class] for k in (label.unique().tolist() if classes is None else classes)]
    return torch.cat(kept).sort().values


@final
@dataclass(frozen=True)
class EndlessBatches(Sampler[Tensor]):
    """The training stream as index batches (B,), without end, from batch `start_step` on.

    It has no length, which tells Lightning that the epoch does not end.
    """

    num_samples: int
    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1
    start_step: int = 0

    def __iter__(self) -> Iterator[Tensor]:
        epoch_order = functools.lru_cache(maxsize=1)(self.epoch_order)
        return (self._cut(step, epoch_order) for step in itertools.count(self.start_step))

    def batch(self, step: int) -> Tensor:
        """Batch `step` of this rank: int64 (B,)."""
        return self._cut(step, self.epoch_order)

    def epoch_order(self, epoch: int) -> Tensor:
        """The permutation π_e: int64 (n,)."""
        return torch.randperm(self.num_samples, generator=step_generator(self.seed, SHUFFLE, epoch))

    def _cut(self, step: int, epoch_order: Callable[[int], Tensor]) -> Tensor:
        start = (step * self.world_size + self.rank) * self.batch_size
        stop = start + self.batch_size
        pieces = []
        while start < stop:
            epoch, first = divmod(start, self.num_samples)
            pieces.append(epoch_order(epoch)[first : first + stop - start])
            start += len(pieces[-1])
        return torch.cat(pieces)


@final
@dataclass(frozen=True)
class OrderedBatches(Sampler[Tensor]):
    """Every sample once, in order, in batches of at most `batch_size`; rank r of W takes the r-th of W parts.

    Nothing is padded: parts differ in length by at most one sample, so ranks may differ by one batch.
    """

    num_samples: int
    batch_size: int
    rank: int = 0
    world_size: int = 1

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._part.split(self.batch_size) if len(self._part) else ())

    def __len__(self) -> int:
        return -(-len(self._part) // self.batch_size)

    @property
    def _part(self) -> Tensor:
        first, last = (self.num_samples * r // self.world_size for r in (self.rank, self.rank + 1))
        return torch.arange(first, last)


class Dataset(Protocol):
    """What a measurement in a model's own space needs of a data set: a DataModule or its latent view `Encoded`."""

    @property
    def name(self) -> str:
        """The registered name."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample in the model's space."""

    @property
    def num_classes(self) -> int | None:
        """Number of classes, None without labels."""

    @property
    def levels(self) -> int | None:
        """Number of values a pixel can take, None for continuous data."""

    @property
    def train(self) -> Split:
        """The raw training samples."""

    @property
    def test(self) -> Split:
        """The raw test samples."""

    def dequantize(self, x_raw: Tensor, sources: Sequence[torch.Generator]) -> Tensor:
        """Raw samples (B, …) in the model's space, float32; sample i draws its noise from its own generator."""


def _check_finite(split: Split, what: str) -> None:
    """Raise DataError for the first value of a split of real numbers that is NaN or infinite."""
    if not split[0].x.is_floating_point():
        return
    for start in range(0, len(split), CHECKED):
        bad = (~split[start : start + CHECKED].x.isfinite()).nonzero()
        if len(bad):
            sample, *where = bad[0].tolist()
            value = split[start + sample].x[0][tuple(where)].item()
            column = where[0] if len(where) == 1 else tuple(where)
            raise DataError(
                f"sample {start + sample} of {what} is {value} in column {column} (both count from 0): replace the"
                " value, or leave the sample out."
            )


class DataModule(ABC):
    """A data set. Its attributes are known after construction; `setup` reads the files.

    A subclass defines `load`, and the first three attributes.

    Args:
        values: what the numbers of raw samples mean, Pixels or Vectors.
        batch_size: samples per batch of one process, ≥ 1.
        num_workers: loader processes, ≥ 0. They draw no random numbers, so this changes the speed only.
        caption_template: text with one {}, for the name of the class; gives every sample a caption in place of those
            that the files may have. None: no such captions.

    Attributes:
        name: the registered name.
        shape: shape of one sample, (C, H, W) or (D,).
        num_classes: number of classes; None without labels.
        class_names: the name of each class as captions say it; empty: the class's number.
        has_captions: whether its splits have captions without a template.
        train, test: the splits; available after `prepare_data()` and `setup()`, which raise DataError.
        seed: seed of the training stream; set before training.
        start_step: number of batches that training has already taken; set before training.
    """

    name: str
    shape: tuple[int, ...]
    num_classes: int | None
    class_names: Sequence[str] = ()
    has_captions: bool = False
    train: Split
    test: Split

    def __init__(self, values: Values, batch_size: int, num_workers: int, caption_template: str | None = None) -> None:
        if caption_template is not None and caption_template.count("{}") != 1:
            raise ConfigurationError(
                f"dataset.caption_template={caption_template} is not allowed: it must have {{}} once, where the name of "
                "the class goes, e.g. 'a photo of a {}'."
            )
        self.values = values
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.caption_template = caption_template
        self.seed = 0
        self.start_step = 0
        self._loaded = False

    @abstractmethod
    def load(self) -> tuple[Split, Split]:
        """Open the data and return (train, test); raises DataError."""

    def prepare_data(self) -> None:  # noqa: B027, most data sets have nothing to fetch
        """Fetch missing files; raises DataError if that fails."""

    def count_classes(self) -> int | None:
        """The number of classes, counted in the files where it is not declared; raises DataError if that fails."""
        return self.num_classes

    @property
    def levels(self) -> int | None:
        """Number of values a pixel can take, None for continuous data."""
        return self.values.levels

    def to_model(self, x: Tensor, generator: torch.Generator | None = None, train: bool = False) -> Tensor:
        """Raw samples to model space, float32; dequantisation and mirroring draw from `generator`."""
        return self.values.to_model(x, generator, train)

    def quantize(self, x: Tensor) -> Tensor:
        """Model-space samples snapped to the midpoints of the data's levels."""
        return self.values.quantize(x)

    def centre(self, x_raw: Tensor) -> Tensor:
        """Raw samples in model space without dequantisation noise."""
        return centred(self.values, x_raw)

    def dequantize(self, x_raw: Tensor, sources: Sequence[torch.Generator]) -> Tensor:
        """Raw samples in model space; each is spread uniformly over its grey levels by its own generator."""
        x = self.centre(x_raw)
        if self.levels is None:
            return x
        u = torch.stack([torch.rand(x.shape[1:], generator=source) for source in sources]).to(x.device)  # (B, C, H, W)
        return x + (2 * u - 1) / self.levels

    def to_uint8(self, x: Tensor) -> Tensor:
        """Model-space images as uint8 pictures of the same shape."""
        return self.values.to_uint8(x)

    @final
    def setup(self) -> None:
        """Load once; raises DataError if a split lacks the declared shape or classes, or holds NaN or infinity."""
        if self._loaded:
            return
        train, test = self.load()
        for part, split in (("training", train), ("test", test)):
            if not len(split):
                raise DataError(f"{self.name} has no {part} samples: give it data to read.")
            shape = tuple(split[0].x.shape[1:])
            if shape != tuple(self.shape):
                raise DataError(f"the {part} samples of {self.name} have shape {shape} where {self.shape} is expected.")
            low, high = int(split.label.min()), int(split.label.max())
            if self.num_classes is not None and not 0 <= low <= high < self.num_classes:
                raise DataError(
                    f"the {part} labels of {self.name} lie in {low}…{high} where 0…{self.num_classes - 1} is"
                    f" allowed: dataset.num_classes must cover all of them."
                )
            if not split.is_checked:
                _check_finite(split, f"the {part} split of {self.name}")
            if self.caption_template is not None:
                split.captions = self._of_template(self.caption_template, split.label)
        self.train, self.test = train, test
        self._loaded = True

    def _of_template(self, template: str, label: Tensor) -> Captions:
        """The captions of samples of these classes."""
        if self.num_classes is None:
            raise DataError(
                f"dataset.caption_template={template} needs classes, and {self.name} is read without them: set "
                "dataset.num_classes, or dataset.caption_template=null."
            )
        names = self.class_names or range(self.num_classes)
        texts = [template.replace("{}", str(name)) for name in names]
        return Captions((texts[k],) for k in label.tolist())

    @final
    def train_dataloader(self, rank: int = 0, world_size: int = 1, pin_memory: bool = False) -> DataLoader[Batch]:
        """The endless training stream from batch `start_step` on, for one of world_size processes."""
        stream = EndlessBatches(len(self.train), self.batch_size, self.seed, rank, world_size, self.start_step)
        return self._loader(self.train, stream, pin_memory)

    @final
    def test_dataloader(self, rank: int = 0, world_size: int = 1, pin_memory: bool = False) -> DataLoader[Batch]:
        """The test split in order, or this process's part of it."""
        return self._loader(self.test, OrderedBatches(len(self.test), self.batch_size, rank, world_size), pin_memory)

    def _loader(self, split: Split, batches: Sampler[Tensor], pin_memory: bool) -> DataLoader[Batch]:
        return DataLoader(
            split,
            sampler=batches,
            batch_size=None,  # the sampler yields the indices of a whole batch, which the split reads at once
            num_workers=self.num_workers,
            worker_init_fn=exit_on_parent_signal,
            multiprocessing_context=SignalBlockingContext() if self.num_workers else None,
            persistent_workers=self.num_workers > 0,
            pin_memory=pin_memory,
            # Its own generator, because making a loader must not advance the global one.
            generator=torch.Generator().manual_seed(self.seed),
        )
