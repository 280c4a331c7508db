"""Before a sweep starts: every job is composed and checked, and all that make no sense are named at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from flowdiff.errors import ConfigurationError, FlowdiffError
from flowdiff.runs.identity import labels

Composed = TypeVar("Composed")


def checked(jobs: Sequence[Sequence[str]], compose: Callable[[Sequence[str]], Composed]) -> list[Composed]:
    """compose(overrides) for every job; where that raises, one ConfigurationError with a line for each such job."""
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
