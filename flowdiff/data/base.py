"""The data room's contract: whole batches by index, and an endless stream of them that starts at any step.

The training stream is one long row of sample indices, the epochs' permutations one after the other:

    stream(p) = π_{p div n}(p mod n),    π_e a permutation of {0, …, n-1} drawn from (seed, e) alone.

Batch k of rank r of W ranks is stream(p) for p = (kW + r)B, …, (kW + r)B + B - 1. It runs across epoch
borders, so all batches have B samples, every sample is seen once per epoch, and batch k is a pure function
of (seed, k): a run that resumes at step k gets the batch it would have had.
"""

from __future__ import annotations

import functools
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from flowdiff.data.pixels import Pixels, Vectors
from flowdiff.data.workers import DeafContext, heed_parent_only
from flowdiff.errors import DataError
from flowdiff.noise import step_generator

# First counter of the shuffling generator: training steps count from 0 and never draw the same numbers.
SHUFFLE = -1


class Batch(NamedTuple):
    """Raw samples x (B, …), uint8 levels or float32 vectors, and classes int64 (B,), zeros when unlabelled."""

    x: Tensor
    label: Tensor


class Split(ABC):
    """Samples that are taken many at a time: `split[indices]` is a Batch.

    indices: a LongTensor or list of positions in 0…n-1, a slice, or one integer, which gives a batch of one.
    label: int64 (n,), zeros when unlabelled.
    """

    def __init__(self, label: Tensor) -> None:
        self.label = label

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
        return Batch(self.read(indices), self.label[indices])


@final
class TensorSplit(Split):
    """A split that lies in memory: x (n, …), label (n,) or None."""

    def __init__(self, x: Tensor, label: Tensor | None = None) -> None:
        super().__init__(torch.zeros(len(x), dtype=torch.int64) if label is None else label.long())
        self.x = x

    def read(self, indices: Tensor) -> Tensor:
        return self.x.index_select(0, indices)


def held_out(n: int, num_test: int) -> tuple[Tensor, Tensor]:
    """Positions 0…n-1 parted into (train, test) by a fixed permutation, the same whatever the run's seed."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    return order[num_test:].sort().values, order[:num_test].sort().values


@final
@dataclass(frozen=True)
class EndlessBatches(Sampler[Tensor]):
    """The module's stream as index batches (B,), without end, from batch `start_step` on.

    It has no length, by which Lightning knows that the epoch does not end.
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
    """Every sample once, in order, in batches of at most `batch_size`; rank r of W takes the r-th of W runs.

    Nothing is padded: runs differ in length by at most one sample, so ranks may differ by one batch.
    """

    num_samples: int
    batch_size: int
    rank: int = 0
    world_size: int = 1

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._run.split(self.batch_size) if len(self._run) else ())

    def __len__(self) -> int:
        return -(-len(self._run) // self.batch_size)

    @property
    def _run(self) -> Tensor:
        first, last = (self.num_samples * r // self.world_size for r in (self.rank, self.rank + 1))
        return torch.arange(first, last)


class DataModule(ABC):
    """A data set: what its samples are is known at once, the files are read by `setup`.

    name: the registered name.  shape: of one sample, (C, H, W) or (D,).  num_classes: None when unlabelled.
    values: what the numbers mean, Pixels or Vectors; `levels` is its number of levels or None.
    train, test: the splits, after `prepare_data()` and `setup()`, which raise DataError.
    seed, start_step: of the training stream, set before training; start_step is the number of batches already
    taken.

    batch_size counts the samples of one process; workers draw no random numbers, so their number changes
    nothing but speed. A subclass says how to `load` and is final, or abstract where several sources share it.
    """

    name: ClassVar[str]
    shape: tuple[int, ...]
    num_classes: int | None
    train: Split
    test: Split

    def __init__(self, values: Pixels | Vectors, batch_size: int, num_workers: int) -> None:
        self.values = values
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = 0
        self.start_step = 0
        self._loaded = False

    @abstractmethod
    def load(self) -> tuple[Split, Split]:
        """Open the data: (train, test), or DataError."""

    def prepare_data(self) -> None:  # noqa: B027, most have nothing to fetch
        """Fetch what is missing; DataError where that fails."""

    @property
    def levels(self) -> int | None:
        """Number of values a pixel can take, None for continuous data."""
        return self.values.levels

    def to_model(self, x: Tensor, generator: torch.Generator | None = None, train: bool = False) -> Tensor:
        """Raw samples to model space, float32; dequantisation and training flips draw from `generator`."""
        return self.values.to_model(x, generator, train)

    def quantize(self, x: Tensor) -> Tensor:
        """Model-space samples snapped to the midpoints of the data's levels."""
        return self.values.quantize(x)

    def to_uint8(self, x: Tensor) -> Tensor:
        """Model-space images as uint8 pictures of the same layout."""
        return self.values.to_uint8(x)

    @final
    def setup(self) -> None:
        """Load once; DataError where a split does not have the declared shape and classes."""
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
        self.train, self.test = train, test
        self._loaded = True

    @final
    def train_dataloader(self, rank: int = 0, world_size: int = 1, pin_memory: bool = False) -> DataLoader:
        """The endless training stream from batch `start_step` on, of one process out of world_size."""
        stream = EndlessBatches(len(self.train), self.batch_size, self.seed, rank, world_size, self.start_step)
        return self._loader(self.train, stream, pin_memory)

    @final
    def test_dataloader(self, rank: int = 0, world_size: int = 1, pin_memory: bool = False) -> DataLoader:
        """The test split in order, of one process its part."""
        return self._loader(self.test, OrderedBatches(len(self.test), self.batch_size, rank, world_size), pin_memory)

    def _loader(self, split: Split, batches: Sampler[Tensor], pin_memory: bool) -> DataLoader:
        return DataLoader(
            split,
            sampler=batches,
            batch_size=None,  # the sampler yields whole batches and the split takes them whole
            num_workers=self.num_workers,
            worker_init_fn=heed_parent_only,
            multiprocessing_context=DeafContext() if self.num_workers else None,
            persistent_workers=self.num_workers > 0,
            pin_memory=pin_memory,
            # Its own generator: making a loader must not move the global one.
            generator=torch.Generator().manual_seed(self.seed),
        )
