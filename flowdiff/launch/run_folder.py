"""A run's folder: what lies in it, how it is read, and how it comes to look finished, last and at once."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from flowdiff.errors import RunError
from flowdiff.launch import lock

VERSIONED = ("torch", "lightning", "hydra-core", "wandb", "diffusers", "torchmetrics", "numpy")

TAIL = 4096  # bytes at the end of metrics.csv that are read for the progress of a run


class RunFolder:
    """The paths of one run and what they hold.

    `result.json` exists exactly when the run is complete: it is written last, to a temporary name, and renamed.
    `failed.json` exists exactly when the last attempt ended in an error.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.metrics = self.path / "metrics.csv"
        self.evaluations = self.path / "evaluations.csv"
        self.checkpoint = self.path / "checkpoints" / "last.ckpt"
        self.result_file = self.path / "result.json"
        self.failed_file = self.path / "failed.json"
        self.samples = self.path / "samples.png"
        self.trajectory = self.path / "trajectory.png"
        self.loss_curve = self.path / "loss_curve.png"

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """An existing run folder; RunError if it is none."""
        folder = cls(path)
        if not folder.path.is_dir():
            raise RunError(f"run={path} does not exist: give the folder of a training run, e.g. one below outputs/.")
        if not folder.config_file.is_file():
            raise RunError(f"run={path} is not a run folder, it has no config.yaml: give the folder of a training run.")
        return folder

    @property
    def is_complete(self) -> bool:
        """Whether the run ended: result.json is there."""
        return self.result_file.is_file()

    def config(self) -> dict[str, Any]:
        """The resolved config the run was made with."""
        with self.config_file.open() as file:
            return yaml.safe_load(file)

    def result(self) -> dict[str, Any]:
        """What result.json holds."""
        return json.loads(self.result_file.read_text())

    def write_config(self, config: dict[str, Any]) -> None:
        """Make the folder and write config.yaml."""
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        _replace(self.config_file, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))

    def write_result(self, result: dict[str, Any]) -> None:
        """Write result.json, atomically: from here on the run is complete."""
        _replace(self.result_file, json.dumps(result, indent=2, allow_nan=True) + "\n")

    def write_failure(self, error: str) -> None:
        """Write failed.json, atomically: the sentence that says why the run ended."""
        _replace(self.failed_file, json.dumps({"error": error}, ensure_ascii=False) + "\n")

    def failure(self) -> str | None:
        """Why the last attempt failed, None if it did not."""
        try:
            return str(json.loads(self.failed_file.read_text())["error"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            return "failed.json cannot be read"

    def reopen(self, *, from_scratch: bool) -> None:
        """Make the run neither complete nor failed; from_scratch: forget all of it. The caller owns the folder."""
        if from_scratch:
            for entry in self.path.iterdir():
                if entry.name != lock.NAME:
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        self.result_file.unlink(missing_ok=True)
        self.failed_file.unlink(missing_ok=True)

    def progress(self) -> tuple[int, float | None]:
        """Optimiser steps known to be done and the last training loss, from the end of metrics.csv."""
        steps, loss = 0, None
        with suppress(OSError, ValueError, StopIteration), self.metrics.open("rb") as file:
            header = next(csv.reader([file.readline().decode()]))
            file.seek(max(file.tell(), file.seek(0, os.SEEK_END) - TAIL))
            lines = file.read().decode().splitlines()
            # A row is logged under the steps done before it; the first line of the tail may be the rest of a row.
            for row in csv.DictReader(lines, header):
                if row["step"].isdecimal() and None not in row.values():
                    steps = max(steps, int(row["step"]) + 1)
                    loss = float(row["train_loss"]) if row.get("train_loss") else loss
        return steps, loss

    def append_evaluation(self, row: dict[str, Any]) -> None:
        """One more row in evaluations.csv; a column that is new to it stays empty in the rows before."""
        rows: list[dict[str, Any]] = []
        if self.evaluations.is_file():
            with self.evaluations.open(newline="") as file:
                rows = list(csv.DictReader(file))
        columns = list(dict.fromkeys([*(rows[0] if rows else ()), *row]))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows([*rows, row])
        _replace(self.evaluations, text.getvalue())


def versions() -> dict[str, str]:
    """The installed versions of what decides a run's numbers."""
    return {name: metadata.version(name) for name in VERSIONED}


def git_commit() -> str | None:
    """The commit the code stands at, with "+dirty" when files differ from it; None outside a repository."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+dirty" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)
