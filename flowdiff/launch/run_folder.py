"""A run's folder: what lies in it, how it is read, and how it comes to look finished, last and at once."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from flowdiff.errors import RunError

VERSIONED = ("torch", "lightning", "hydra-core", "wandb", "diffusers", "torchmetrics", "numpy")


class RunFolder:
    """The paths of one run and what they hold.

    `result.json` exists exactly when the run is complete: it is written last, to a temporary name, and renamed.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.metrics = self.path / "metrics.csv"
        self.evaluations = self.path / "evaluations.csv"
        self.checkpoint = self.path / "checkpoints" / "last.ckpt"
        self.result_file = self.path / "result.json"
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
