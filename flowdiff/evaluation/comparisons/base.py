"""The contract of a metric of samples: numbers from generated samples and the real ones beside them.

A metric is a class registered under `metric` and a line below `compare` in conf/metrics/*.yaml, its name and settings.
Its floor is what it gives for the test split in place of samples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from flowdiff.evaluation.features.samples import Real, Samples


class Metric(ABC):
    """(samples, train, test) ↦ {metric name: number}, with the same names for any samples.

    Settings are keyword-only and kept as attributes of the same names. Random numbers, if there are any, are the same
    in every call. num_samples: how many of a set it looks at, at most; None for all.
    """

    num_samples: int | None = None

    def check(self, data: Any) -> None:  # noqa: B027, most suit any data
        """Raise ConfigurationError where the data do not suit; looks at shape and classes only."""

    @abstractmethod
    def __call__(self, samples: Samples, train: Real, test: Real) -> dict[str, float]:
        """The numbers of `samples`; `test` may be these samples."""
