"""Sets of samples that are compared: generated or real, in model space, with features φ that are computed once.

The features of real data and their statistics are computed in one pass and kept on disk, in files whose names hold a
hash of the data, the extractor's weights and its preprocessing.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from flowdiff.data.base import DataModule
from flowdiff.data.readers import evenly, split_batches
from flowdiff.digests import digest
from flowdiff.evaluation.features.cache import cached
from flowdiff.evaluation.features.extractor import Extractor, extract
from flowdiff.evaluation.features.statistics import FeatureStatistics

log = logging.getLogger(__name__)

T = TypeVar("T")

PACE = 30.0  # seconds between two progress lines in the log
KEPT = 100_000  # features of at most so many real samples are kept; mean and covariance use all samples


class Samples(ABC):
    """A set of n samples with their features.

    Args:
        n: number of samples.
        extractor: maps samples to features.
    """

    def __init__(self, n: int, extractor: Extractor) -> None:
        self.n = n
        self.extractor = extractor

    @abstractmethod
    def x(self, most: int | None = None) -> Iterator[Tensor]:
        """Batches (B, …) of at most `most` samples, evenly spaced, in model space and snapped to the data's levels."""

    @abstractmethod
    def features(self, most: int | None = None) -> Tensor:
        """φ, float32 (≤ most, num_features), of at most `most` samples, evenly spaced; of real ones at most KEPT."""

    @abstractmethod
    def prompts(self, most: int | None = None) -> list[str]:
        """The prompt, or the first caption, of each of at most `most` samples, evenly spaced."""

    @property
    @abstractmethod
    def statistics(self) -> FeatureStatistics:
        """Mean and covariance of φ over all n samples."""


class Generated(Samples):
    """Samples of a model.

    Args:
        x: samples (n, …) in model space.
        extractor: maps samples to features.
        data: the data set, to whose levels samples are snapped.
        batch_size: samples per batch.
        prompts: what each sample was drawn for; None without prompts.
    """

    def __init__(
        self,
        x: Tensor,
        extractor: Extractor,
        data: DataModule,
        batch_size: int,
        prompts: Sequence[str] | None = None,
    ) -> None:
        super().__init__(len(x), extractor)
        self.all = x
        self.texts = prompts
        self.data = data
        self.batch_size = batch_size

    @property
    def finite(self) -> bool:
        """Whether every number is finite; false for a diverged model."""
        return bool(self.all.isfinite().all())

    def x(self, most: int | None = None) -> Iterator[Tensor]:
        for part in self.all[evenly(self.n, most).to(self.all.device)].split(self.batch_size):
            yield self.data.quantize(part.detach().float())

    def prompts(self, most: int | None = None) -> list[str]:
        assert self.texts is not None  # Metrics.check asks for a model of captions
        return [self.texts[i] for i in evenly(self.n, most).tolist()]

    def features(self, most: int | None = None) -> Tensor:
        return self._features[evenly(self.n, most)]

    @cached_property
    def statistics(self) -> FeatureStatistics:
        return FeatureStatistics(self.extractor.num_features).update(self._features)

    @cached_property
    def _features(self) -> Tensor:
        found = extract(self.extractor, self.data, self.all, self.batch_size)
        return torch.cat([f.cpu() for f in paced(found, self.n, "features of samples")])


class Real(Samples):
    """A split of the data; results for it are kept below cache_dir.

    Args:
        data: the data set.
        which: the split.
        extractor: maps samples to features.
        batch_size: samples per batch.
        cache_dir: folder of the kept results.
    """

    def __init__(
        self, data: DataModule, which: Literal["train", "test"], extractor: Extractor, batch_size: int, cache_dir: Path
    ) -> None:
        self.split = data.train if which == "train" else data.test
        super().__init__(len(self.split), extractor)
        self.data = data
        self.name = f"{data.name}-{which}"
        self.batch_size = batch_size
        self.cache_dir = cache_dir

    @cached_property
    def key(self) -> str:
        """Hash of the data, the extractor's weights and its preprocessing."""
        phi, data = self.extractor, self.split.fingerprint()
        return digest(phi.name, phi.weight_hash, phi.preprocessing, self.name, self.data.levels, data)

    def kept(self, kind: str, make: Callable[[], dict[str, Any]], *about: Any) -> dict[str, Any]:
        """The result of `make`, computed once; about: everything besides `key` that it depends on."""
        name = f"{self.name}-{self.extractor.name}-{digest(self.key, *about)}.pt"
        return cached(self.cache_dir / kind / name, make)

    def x(self, most: int | None = None) -> Iterator[Tensor]:
        return (x for x, _ in split_batches(self.data, self.split, self.batch_size, most))

    def prompts(self, most: int | None = None) -> list[str]:
        assert self.split.captions is not None  # `Comparison.check` asks for them
        return [texts[0] for texts in self.split.captions.of(evenly(self.n, most).tolist())]

    def features(self, most: int | None = None) -> Tensor:
        found = self._features["features"]
        return found[evenly(len(found), most)]

    @cached_property
    def statistics(self) -> FeatureStatistics:
        return FeatureStatistics.from_state_dict(self._features)

    @cached_property
    def _features(self) -> dict[str, Any]:
        def make() -> dict[str, Any]:
            statistics, features = FeatureStatistics(self.extractor.num_features), []
            wanted = torch.zeros(self.n, dtype=torch.bool)
            wanted[evenly(self.n, KEPT)] = True
            found = (f.cpu() for x in self.x() for f in extract(self.extractor, self.data, x, self.batch_size))
            for f in paced(found, self.n, f"features of {self.name}"):
                features.append(f[wanted[statistics.n :][: len(f)]])
                statistics.update(f)
            return {**statistics.state_dict(), "features": torch.cat(features)}

        return self.kept("features", make)


def paced(batches: Iterable[T], total: int, what: str, size: Callable[[Any], int] = len) -> Iterator[T]:
    """The batches; every PACE seconds the log says how many of `total` samples are done."""
    done, said = 0, time.monotonic()
    for batch in batches:
        yield batch
        done += size(batch)
        if time.monotonic() - said > PACE:
            said = time.monotonic()
            log.info("%s: %s of %s", what, f"{done:,}", f"{total:,}")
