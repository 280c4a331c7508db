"""The contract of comparisons: numbers computed from generated samples and real ones.

A comparison is a class registered under `comparison`, and a line `<name>: <settings>` below `compare` in
conf/metrics/*.yaml. Its floor is its result for the test split instead of generated samples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from flowdiff.data.base import Dataset
from flowdiff.evaluation.features.samples import Real, Samples


class Comparison(ABC):
    """A comparison of samples with real data: (samples, train, test) ↦ {metric name: number}.

    The metric names do not depend on the samples. Settings are keyword-only and kept as attributes of the same names.
    Random numbers, if there are any, are the same in every call.

    Attributes:
        num_samples: at most so many samples of a set are used; None for all.
    """

    num_samples: int | None = None
    reads_prompts: bool = False  # whether it needs the prompt that each sample was drawn for

    def check(self, data: Dataset) -> None:  # noqa: B027, most fit any data
        """Raise ConfigurationError if the data do not fit; uses their shape and classes only."""

    def about(self) -> list[str]:
        """What its numbers depend on besides the samples and its settings."""
        return []

    @abstractmethod
    def __call__(self, samples: Samples, train: Real, test: Real) -> dict[str, float]:
        """The metrics of `samples`; for the floor, `samples` is `test`."""
