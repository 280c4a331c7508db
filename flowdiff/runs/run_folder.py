"""A run's folder: the files in it, how they are read, and how they are written atomically."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from flowdiff.errors import RunError
from flowdiff.runs.files import file_lock, write_whole
from flowdiff.runs.ownership import LOCK_FILE
from flowdiff.runs.renamed_settings import in_current_names

# libyaml reads a config in about a millisecond, PyYAML's own parser in ten.
try:
    from yaml import CSafeLoader as YAML_LOADER
except ImportError:  # PyYAML without libyaml
    from yaml import SafeLoader as YAML_LOADER  # type: ignore[assignment]
TAIL_BYTES = 4096  # read from the end of metrics.csv for the progress of a run


class RunFolder:
    """The paths of one run and their contents.

    `result.json` exists exactly when the run is complete: it is written last, and atomically. `failed.json` exists
    exactly when the last attempt ended in an error, `pruned.json` when a search ended the run early.

    Args:
        path: the folder; it need not exist.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.metrics = self.path / "metrics.csv"
        self.evaluations = self.path / "evaluations.csv"
        self.checkpoint = self.path / "checkpoints" / "last.ckpt"
        self.result_file = self.path / "result.json"
        self.failed_file = self.path / "failed.json"
        self.pruned_file = self.path / "pruned.json"
        self.samples = self.path / "samples.png"
        self.trajectory = self.path / "trajectory.png"
        self.loss_curve = self.path / "loss_curve.png"
        self.interpolation = self.path / "interpolation.png"
        self.reconstructions = self.path / "reconstructions.png"
        self.pictures = (self.samples, self.trajectory, self.loss_curve, self.interpolation, self.reconstructions)

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """An existing run folder; RunError if `path` is not one."""
        folder = cls(path)
        if not folder.path.is_dir():
            raise RunError(f"run={path} does not exist: give the folder of a training run, e.g. one below outputs/.")
        if not folder.config_file.is_file():
            raise RunError(f"run={path} is not a run folder, it has no config.yaml: give the folder of a training run.")
        return folder

    @property
    def is_complete(self) -> bool:
        """Whether the run is finished: result.json exists and can be read."""
        try:
            self.result()
        except RunError:
            return False
        return True

    def config(self) -> dict[str, Any]:
        """The resolved config of the run; RunError if it cannot be read."""
        try:
            return in_current_names(_mapping(yaml.load(self.config_file.read_text(), YAML_LOADER)))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise RunError(
                f"{self.config_file} cannot be read ({_why(error)}): repeat the run's command with force=true."
            ) from error

    def result(self) -> dict[str, Any]:
        """The content of result.json; RunError if it cannot be read. Older versions wrote fewer keys."""
        try:
            return _mapping(json.loads(self.result_file.read_text()))
        except (OSError, ValueError) as error:
            raise RunError(
                f"{self.result_file} cannot be read ({_why(error)}): the run's command continues from its last "
                "checkpoint and writes it again."
            ) from error

    def test_loss(self) -> float | None:
        """The denoising test loss of a complete run; None if its result does not contain it."""
        return (self.result().get("metrics") or {}).get("test_loss")

    def write_config(self, config: dict[str, Any]) -> None:
        """Make the folder and write config.yaml."""
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.config_file, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))

    def write_result(self, result: dict[str, Any]) -> None:
        """Write result.json atomically: from now on the run is complete."""
        write_whole(self.result_file, json.dumps(result, indent=2, allow_nan=True) + "\n")

    def write_failure(self, error: str) -> None:
        """Write failed.json atomically. error: one sentence that says why the run ended."""
        write_whole(self.failed_file, json.dumps({"error": error}, ensure_ascii=False) + "\n")

    def failure(self) -> str | None:
        """Why the last attempt failed; None if it did not."""
        try:
            return str(json.loads(self.failed_file.read_text())["error"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            return "failed.json cannot be read"

    def write_pruned(self, step: int, metric: str, value: float, study: str) -> None:
        """Write pruned.json atomically: the study that ended the run, the step, the metric and its value there."""
        pruned = {"step": step, "metric": metric, "value": value, "study": study}
        write_whole(self.pruned_file, json.dumps(pruned) + "\n")

    def pruned(self) -> dict[str, Any] | None:
        """The content of pruned.json; None if the run was not ended early."""
        try:
            return _mapping(json.loads(self.pruned_file.read_text()))
        except (OSError, ValueError):
            return None

    def reopen(self, *, from_scratch: bool) -> None:
        """Mark the run as not ended; with from_scratch empty its folder. The caller must own the folder."""
        if from_scratch:
            for entry in self.path.iterdir():
                if entry.name != LOCK_FILE:
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        self.result_file.unlink(missing_ok=True)
        self.failed_file.unlink(missing_ok=True)
        self.pruned_file.unlink(missing_ok=True)

    def progress(self) -> tuple[int, float | None]:
        """Number of optimiser steps known to be done and the last training loss, from the end of metrics.csv."""
        steps, loss = 0, None
        with suppress(OSError, ValueError, StopIteration), self.metrics.open("rb") as file:
            header = next(csv.reader([file.readline().decode()]))
            file.seek(max(file.tell(), file.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = file.read().decode().splitlines()
            # A row is logged under the steps done before it; the first line of the tail may be the rest of a row.
            for row in csv.DictReader(lines, header):
                if row["step"].isdecimal() and None not in row.values():
                    steps = max(steps, int(row["step"]) + 1)
                    loss = float(row["train_loss"]) if row.get("train_loss") else loss
        return steps, loss

    def append_evaluation(self, row: dict[str, Any]) -> int:
        """Append a row to evaluations.csv and return the number of rows. New columns stay empty in the older rows.

        Processes that evaluate the same run at the same time wait for each other.
        """
        with file_lock(self.path / ".evaluations.lock"):
            rows: list[dict[str, Any]] = []
            columns: list[str] = []
            if self.evaluations.is_file():
                with self.evaluations.open(newline="") as file:
                    reader = csv.DictReader(file)
                    rows, columns = list(reader), list(reader.fieldnames or ())
            columns = list(dict.fromkeys([*columns, *row]))
            text = io.StringIO()
            # extrasaction: a file that was edited by hand may have rows longer than its header; drop the excess cells.
            writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows([*rows, row])
            write_whole(self.evaluations, text.getvalue())
            return len(rows) + 1


def _mapping(node: Any) -> dict[str, Any]:
    if not isinstance(node, dict):
        raise ValueError("it does not contain a mapping")
    return node


def _why(error: Exception) -> str:
    """The first line of an error message."""
    text = error.strerror if isinstance(error, OSError) else str(error)
    return (text or type(error).__name__).splitlines()[0]
