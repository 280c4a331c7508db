"""What metrics compare: samples in model space, and their features φ, each computed once.

Of real data the features and their statistics are taken in one pass and kept on disk, in files whose names hold a hash
of the data, the extractor's weights and its preprocessing.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from flowdiff.data.readers import evenly, split_batches
from flowdiff.digests import digest, fingerprint
from flowdiff.evaluation.features.cache import cached
from flowdiff.evaluation.features.extractor import Extractor, extract
from flowdiff.evaluation.features.statistics import FeatureStatistics

log = logging.getLogger(__name__)

T = TypeVar("T")

PACE = 30.0  # seconds between two lines about work that goes on
KEPT = 100_000  # real samples at most whose features are kept; mean and covariance are of all


class Samples(ABC):
    """n samples: `x`, batch by batch, their `features` and the `statistics` of all of these."""

    def __init__(self, n: int, extractor: Extractor) -> None:
        self.n = n
        self.extractor = extractor

    @abstractmethod
    def x(self, most: int | None = None) -> Iterator[Tensor]:
        """Batches (B, …) of at most `most` samples, evenly spaced, in model space and snapped to the data's levels."""

    @abstractmethod
    def features(self, most: int | None = None) -> Tensor:
        """φ, float32 (min(n, most), num_features), of at most `most` samples (of real ones KEPT), evenly spaced."""

    @property
    @abstractmethod
    def statistics(self) -> FeatureStatistics:
        """Mean and covariance of φ over all n."""


class Generated(Samples):
    """Samples x (n, …) of a model, in model space."""

    def __init__(self, x: Tensor, extractor: Extractor, data: Any, batch_size: int) -> None:
        super().__init__(len(x), extractor)
        self.all = x
        self.data = data
        self.batch_size = batch_size

    @property
    def finite(self) -> bool:
        """False for those of a diverged model."""
        return bool(self.all.isfinite().all())

    def x(self, most: int | None = None) -> Iterator[Tensor]:
        for part in self.all[evenly(self.n, most).to(self.all.device)].split(self.batch_size):
            yield self.data.quantize(part.detach().float())

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
    """A split of the data, `train` or `test`; what is computed of it is kept below cache_dir."""

    def __init__(self, data: Any, which: str, extractor: Extractor, batch_size: int, cache_dir: Path) -> None:
        self.split = getattr(data, which)
        super().__init__(len(self.split), extractor)
        self.data = data
        self.name = f"{data.name}-{which}"
        self.batch_size = batch_size
        self.cache_dir = cache_dir

    @cached_property
    def key(self) -> str:
        """Hash of the data, the extractor's weights and its preprocessing."""
        phi, data = self.extractor, fingerprint(self.split)
        return digest(phi.name, phi.weight_hash, phi.preprocessing, self.name, self.data.levels, data)

    def kept(self, kind: str, make: Callable[[], dict[str, Any]], *about: Any) -> dict[str, Any]:
        """What `make` returns, computed once; about: what else than `key` it depends on."""
        name = f"{self.name}-{self.extractor.name}-{digest(self.key, *about)}.pt"
        return cached(self.cache_dir / kind / name, make)

    def x(self, most: int | None = None) -> Iterator[Tensor]:
        return (x for x, _ in split_batches(self.data, self.split, self.batch_size, most))

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


def paced(batches: Iterable[T], total: int, what: str, size: Callable[[T], int] = len) -> Iterator[T]:
    """The batches, with a line in the log about how many of `total` samples are done, where it takes long."""
    done, said = 0, time.monotonic()
    for batch in batches:
        yield batch
        done += size(batch)
        if time.monotonic() - said > PACE:
            said = time.monotonic()
            log.info("%s: %s of %s", what, f"{done:,}", f"{total:,}")
