"""The training curves of a run: `metrics.csv`, which every run has."""

from __future__ import annotations

import csv
from argparse import Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger

from flowdiff.runs.files import whole


class MetricsCSV(Logger):
    """Appends one row per logged step to `metrics.csv`: a column `step`, then one per metric, empty if not measured.

    A resumed run first drops the rows after the step it resumes from (`truncate`), so that no step is logged twice.

    Args:
        path: the CSV file; an existing one is continued.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.path = Path(path)
        self._columns = ["step"]
        if self.path.exists():
            with self.path.open(newline="") as file:
                self._columns = next(csv.reader(file), ["step"])

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml holds the hyperparameters."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a row; a new metric adds a column, for which the file is rewritten."""
        row = {"step": step, **{k: v for k, v in metrics.items() if k != "epoch"}}
        if len(row) == 1:
            return
        new = [key for key in row if key not in self._columns]
        if new or not self.path.exists():
            self._columns += new
            self._rewrite([*self.rows(), row])
            return
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns, restval="").writerow(row)

    def rows(self) -> list[dict[str, str]]:
        """All rows so far, as text. A half-written last row is left out."""
        if not self.path.exists():
            return []
        lines = self.path.read_text().splitlines(keepends=True)
        return list(csv.DictReader(line for line in lines if line.endswith("\n")))

    def truncate(self, step: int) -> None:
        """Drop the rows with a step greater than `step`."""
        if self.path.exists():
            self._rewrite([row for row in self.rows() if int(row["step"]) <= step])

    def _rewrite(self, rows: Iterable[Mapping[str, object]]) -> None:
        with whole(self.path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
