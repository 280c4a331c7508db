"""Before a sweep starts: every job is composed and checked, and all that make no sense are named at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from flowdiff.errors import ConfigurationError

Composed = TypeVar("Composed")


def checked(jobs: Sequence[Sequence[str]], compose: Callable[[Sequence[str]], Composed]) -> list[Composed]:
    """compose(overrides) for every job; one ConfigurationError with a line for each job that raises one."""
    composed, refused = [], []
    for overrides in jobs:
        try:
            composed.append(compose(overrides))
        except ConfigurationError as error:
            refused.append((" ".join(overrides), str(error)))
    if not refused:
        return composed
    if len(jobs) == 1:
        raise ConfigurationError(refused[0][1])
    lines = "".join(f"\n  {overrides}: {error}" for overrides, error in refused)
    raise ConfigurationError(f"{len(refused)} of {len(jobs)} jobs make no sense, so none was started:{lines}")
