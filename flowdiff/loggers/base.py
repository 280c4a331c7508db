"""Loggers show a run outside of its folder; every run writes metrics.csv, with or without one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger


class RunInfo(TypedDict):
    """What a logger is told about a run; sweep: the name of its sweep's folder, None for a single run."""

    run_id: str
    name: str
    sweep: str | None
    tags: list[str]


class StartedRun(RunInfo):
    """A run at its start; config: plain containers; resumed: whether it continues from a checkpoint."""

    config: dict[str, Any]
    resumed: bool


class Tracker:
    """A logger: receives the curves, pictures and results of one run. This base class does nothing with them.

    `start` comes first, then any of the others, and `finish` last. A subclass overrides what it supports.
    """

    def start(self, folder: Path, run: StartedRun) -> list[Logger]:
        """Begin logging the run of a run folder; returns the Lightning loggers that receive its curves."""
        return []

    def minimise(self, values: Mapping[str, float]) -> None:
        """Keep the minimum of these curves too; called with their next points, before the points are logged."""

    def pictures(self, paths: dict[str, Path], step: int) -> None:
        """Show picture files under the given keys."""

    def summary(self, metrics: dict[str, Any]) -> None:
        """Record the final results; a metric for which there is no number is None."""

    def checkpoint(self, path: Path) -> None:
        """Store the final checkpoint, if the logger is configured to."""

    def preempting(self) -> None:
        """Record that the run is being stopped and will be resumed; `finish` follows."""

    def finish(self, exit_code: int = 0) -> None:
        """End logging, also after an error."""

    def evaluations(self, folder: Path, run: RunInfo, rows: list[dict[str, Any]]) -> None:
        """Append rows of evaluations.csv, each with its `number`, to a run that has ended."""
