"""What every logger does beside metrics.csv."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger


class Tracker:
    """Beside metrics.csv: nothing. The base of the loggers that show a run elsewhere."""

    def start(self, folder: Path, run: dict[str, Any]) -> list[Logger]:
        """Open the run's loggers; run holds run_id, name, sweep, tags, config (plain containers) and resumed."""
        return []

    def minimise(self, values: Mapping[str, float]) -> None:
        """Points of curves whose least value counts; said before they are logged."""

    def pictures(self, paths: dict[str, Path], step: int) -> None:
        """Show picture files under the given keys."""

    def summary(self, metrics: dict[str, Any]) -> None:
        """Final numbers, beside the last values of the curves."""

    def checkpoint(self, path: Path) -> None:
        """Keep the final checkpoint too, where that was asked for."""

    def preempting(self) -> None:
        """Say that the run is being stopped and will go on; `finish` follows."""

    def finish(self, exit_code: int = 0) -> None:
        """Close the run, also after an error."""

    def evaluations(self, folder: Path, run: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        """Append rows of evaluations.csv, with their `number`, to a run that has ended; run: as for `start`."""
