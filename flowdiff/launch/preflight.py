"""Before a sweep starts, all jobs are composed and checked, and all errors are reported together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from flowdiff.errors import ConfigurationError, FlowdiffError
from flowdiff.runs.identity import labels

Composed = TypeVar("Composed")


def compose_all(jobs: Sequence[Sequence[str]], compose: Callable[[Sequence[str]], Composed]) -> list[Composed]:
    """Call compose(overrides) for every job.

    Raises:
        ConfigurationError: `compose` failed for some jobs; the message has a line for each of them.
    """
    composed, refused = [], []
    for overrides, label in zip(jobs, labels(jobs), strict=True):
        try:
            composed.append(compose(overrides))
        except FlowdiffError as error:
            refused.append((label, error))
    if not refused:
        return composed
    if len(jobs) == 1:
        raise refused[0][1]
    lines = "".join(f"\n  {label}: {error}" for label, error in refused)
    raise ConfigurationError(f"{len(refused)} of {len(jobs)} jobs make no sense, so none was started:{lines}")
