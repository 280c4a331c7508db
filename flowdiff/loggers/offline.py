"""Runs that W&B has logged offline, and their upload by `wandb sync`.

A run that was stopped and resumed has several fragments, `wandb/offline-run-<time>-<id>/run-<id>.wandb`. They are
uploaded in the order of their times: the first one replaces what W&B may hold of the run, the others are appended. A
process that was killed leaves a fragment whose last record is incomplete. `wandb sync` uploads such a fragment up to
its last complete record, does not mark it as uploaded and stops; we mark it and go on with the fragments after it. A
fragment without the record that names its run is skipped, because `wandb sync` would refuse the whole call.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowdiff.errors import RunError
from flowdiff.runs import ownership
from flowdiff.runs.records import is_foreign

EMPTY = 7  # bytes of a fragment into which nothing was logged: W&B's file header
INCOMPLETE = "the file ends with an incomplete record"  # from the error message of `wandb sync`


@dataclass(frozen=True)
class OfflineRun:
    """The fragments of one run id in one run folder, in the order of their times."""

    folder: Path
    run_id: str
    fragments: tuple[Path, ...]

    @property
    def pending(self) -> tuple[Path, ...]:
        """The fragments that are not uploaded yet."""
        return tuple(file for file in self.fragments if not synced(file))

    @property
    def is_running(self) -> bool:
        """Whether a process still writes the run.

        Nobody owns the folder of WANDB_DIR, which several runs share: there a run counts as running while its last
        fragment grows.
        """
        if self.folder.resolve() != Path(os.environ.get("WANDB_DIR") or self.folder / "none").resolve():
            return ownership.owner(self.folder) is not None
        return time.time() - self.fragments[-1].stat().st_mtime < ownership.MAX_SILENCE

    def upload(self) -> None:
        """Upload the pending fragments.

        After an interrupted upload W&B may hold a part of a fragment, so the next upload sends all fragments again.

        Raises:
            RunError: `wandb sync` failed; the message is its own.
        """
        begun = self.folder / "wandb" / f"upload-begun-{self.run_id}"  # several runs of one folder upload in parallel
        if begun.exists():
            for file in self.fragments:
                _mark(file).unlink(missing_ok=True)
        left = [file for file in self.pending if any(record.get("type") == "run" for record in records(file))]
        if not left:
            return
        begun.touch()
        while left:
            log_folder = str(self.folder.resolve())
            done = _wandb("sync", *map(str, left), stderr=subprocess.STDOUT, WANDB_DIR=log_folder)
            # `wandb sync` may exit with status 0 after a failure; the marks tell what was uploaded.
            left = [file for file in left if not synced(file)]
            complaint = _complaint(done.stdout)
            if left and INCOMPLETE in complaint and left[0].parent.name in complaint:
                _mark(left.pop(0)).touch()
            elif left or done.returncode:
                raise RunError(complaint or f"wandb sync ended with status {done.returncode}")
        begun.unlink()


def offline_runs(folder: Path) -> list[OfflineRun]:
    """Every run with offline fragments in a run folder, a sweep folder or a folder of sweeps.

    Raises:
        RunError: the folder does not exist.
    """
    if not folder.is_dir():
        raise RunError(f"{folder} does not exist: give the folder of a sweep or of a run.")
    found: dict[tuple[Path, str], list[Path]] = {}
    for pattern in ("wandb", "*/wandb", "*/*/wandb"):
        for file in folder.glob(f"{pattern}/offline-run-*/run-*.wandb"):
            if file.is_file() and file.stat().st_size > EMPTY and not is_foreign(file.parents[2]):
                found.setdefault((file.parents[2], file.stem.removeprefix("run-")), []).append(file)
    return [
        OfflineRun(run, run_id, tuple(sorted(files, key=lambda file: file.parent.name)))
        for (run, run_id), files in sorted(found.items())
    ]


def synced(fragment: Path) -> bool:
    """Whether the fragment is marked as uploaded."""
    return _mark(fragment).exists()


def records(fragment: Path) -> list[dict[str, Any]]:
    """The complete records of a fragment, as W&B's own reader prints them: {"type": "run", "run": {…}, …}."""
    read = _wandb("leet", "inspect", "--json", str(fragment), stderr=subprocess.DEVNULL, WANDB_MODE="offline")
    found = []
    for line in read.stdout.splitlines():
        with suppress(ValueError):  # a warning between the records
            found.append(json.loads(line))
    return [record for record in found if isinstance(record, dict)]


def _mark(fragment: Path) -> Path:
    """The file by which `wandb sync` marks a fragment as uploaded."""
    return fragment.with_name(f"{fragment.name}.synced")


def _wandb(*arguments: str, stderr: int, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run W&B's command line."""
    return subprocess.run(
        [sys.executable, "-m", "wandb", *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        encoding="utf-8",
        errors="replace",
        check=False,
    )


def _complaint(output: str) -> str:
    """The errors in the output of `wandb sync`, or its last line; on one line."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).removeprefix("wandb: ").strip() for line in output.splitlines()]
    errors = [line.removeprefix("ERROR ") for line in lines if line.startswith(("ERROR", "Error"))]
    return " ".join(errors or lines[-1:])
