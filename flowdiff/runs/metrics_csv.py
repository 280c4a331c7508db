"""The training curves of a run: `metrics.csv`, which every run has."""

from __future__ import annotations

import csv
from argparse import Namespace
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger

from flowdiff.errors import RunError
from flowdiff.runs.files import whole
from flowdiff.runs.records import Unreadable, column, number_in, read_csv, step_in
from flowdiff.runs.undefined import written


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
        with suppress(Unreadable):  # a run that starts from scratch does not need it, and `truncate` refuses it
            self._columns = next(iter(read_csv(self.path, tail=0, exact=True)), self._columns)

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
        """Append a row; a new metric adds a column, for which the file is rewritten. NaN leaves its cell empty."""
        row = {"step": step, **written({k: v for k, v in metrics.items() if k != "epoch"})}
        if len(row) == 1:
            return
        new = [key for key in row if key not in self._columns]
        if new or not self.path.exists():
            self._columns += new
            self._rewrite([*self.rows(), row])
            return
        with self.path.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self._columns, restval="").writerow(row)

    def rows(self) -> list[dict[str, str]]:
        """All rows so far, as text. A half-written last row is left out."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8-sig").splitlines(keepends=True)
        return list(csv.DictReader(line for line in lines if line.endswith("\n")))

    def truncate(self, step: int) -> None:
        """Drop the rows with a step greater than `step`, and whatever is not a number.

        Raises:
            RunError: the file cannot be read, or has no steps.
        """
        if not self.path.exists():
            self._columns = ["step"]  # the file of an earlier attempt has been removed
            return
        try:
            header = next(iter(read_csv(self.path, exact=True)), self._columns)
            column(header, "step")
        except Unreadable as error:
            raise RunError(
                f"{self.path} is not what a run writes ({error}): move it elsewhere, and the run continues with a new "
                "one."
            ) from error
        self._columns = header
        kept = [row for row in self.rows() if (at := step_in(row["step"] or "")) is not None and at <= step]
        self._rewrite(
            {key: row[key] if number_in(row[key] or "") is not None else "" for key in header} for row in kept
        )

    def _rewrite(self, rows: Iterable[Mapping[str, object]]) -> None:
        with whole(self.path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self._columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
