"""What W&B has written offline, run by run, and its upload by `wandb sync`.

A run that was stopped and went on leaves several fragments, `wandb/offline-run-<time>-<id>/run-<id>.wandb`. All of a
run's fragments have to go in one call and in the order of their times: the first replaces what W&B may have of the run,
the others are appended. A process that was killed leaves a fragment without its end, at which `wandb sync` gives up on
the run and all fragments after it, so the half-written record is cut off before; or one with nothing in it, which is
left out.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flowdiff.errors import RunError
from flowdiff.runs import lock

HEADER = 7  # bytes of W&B's own in front of the records
BLOCK = 32768  # bytes; no record's fragment crosses the border of one
RUN_RECORD = 20  # records from the start, among which is the one that names the run
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4  # what a fragment of a record is


@dataclass(frozen=True)
class OfflineRun:
    """The fragments of one run id in one run folder, in the order of their times."""

    folder: Path
    run_id: str
    fragments: tuple[Path, ...]

    @property
    def pending(self) -> tuple[Path, ...]:
        """Those that are not uploaded yet."""
        return tuple(file for file in self.fragments if not synced(file))

    @property
    def is_running(self) -> bool:
        """Whether a process still writes the run."""
        return lock.owner(self.folder) is not None

    def upload(self) -> None:
        """Upload what is pending; RunError with W&B's own words where that fails.

        After an upload that was broken off W&B may have a part of a fragment, so that all fragments go once more.
        """
        begun = self.folder / "wandb" / f"upload-begun-{self.run_id}"  # runs of one folder go at once
        again = begun.exists()
        readable = [file for file in (self.fragments if again else self.pending) if _cut_to_records(file)]
        if not readable:
            return
        begun.touch()
        done = subprocess.run(
            [sys.executable, "-m", "wandb", "sync", *(["--include-synced"] if again else []), *map(str, readable)],
            env={**os.environ, "WANDB_DIR": str(self.folder.resolve())},  # where it writes its own log
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        # `wandb sync` ends with status 0 also where it has failed: what counts is the mark it leaves.
        if done.returncode or not all(synced(file) for file in readable):
            raise RunError(_complaint(done.stdout) or f"wandb sync ended with status {done.returncode}")
        begun.unlink()


def offline_runs(folder: Path) -> list[OfflineRun]:
    """Every run with offline fragments in a run folder, a sweep folder or a folder of sweeps.

    RunError where the folder does not exist.
    """
    if not folder.is_dir():
        raise RunError(f"{folder} does not exist: give the folder of a sweep or of a run.")
    found: dict[tuple[Path, str], list[Path]] = {}
    for pattern in ("wandb", "*/wandb", "*/*/wandb"):
        for file in folder.glob(f"{pattern}/offline-run-*/run-*.wandb"):
            if file.stat().st_size > HEADER:  # or its process was killed before it wrote anything
                found.setdefault((file.parents[2], file.stem.removeprefix("run-")), []).append(file)
    return [
        OfflineRun(run, run_id, tuple(sorted(files, key=lambda file: file.parent.name)))
        for (run, run_id), files in sorted(found.items())
    ]


def synced(fragment: Path) -> bool:
    """Whether W&B has marked it as uploaded."""
    return fragment.with_name(f"{fragment.name}.synced").exists()


def records(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(where it ends, what it holds) of every whole record of a W&B file: a LevelDB log behind a header.

    A record is cut into fragments [checksum 4][length 2][kind 1][payload].
    """
    at, parts = HEADER, b""
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:  # the rest of a block too short for a header is padding
            at += BLOCK - at % BLOCK
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        at += 7 + length
        if not WHOLE <= kind <= LAST or at > len(data):
            return
        parts = (b"" if kind in (WHOLE, FIRST) else parts) + data[at - length : at]
        if kind in (WHOLE, LAST):
            yield at, parts


def _cut_to_records(file: Path) -> bool:
    """Cut off what follows the last whole record; whether what is left names its run, without which it is no use."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = file.read_bytes()
    whole = list(records(data))
    end = whole[-1][0] if whole else HEADER
    if end < len(data):
        os.truncate(file, end)
    return any(Record.FromString(record).HasField("run") for _, record in whole[:RUN_RECORD])


def _complaint(said: str) -> str:
    """The errors among what `wandb sync` said, or its last line; on one line."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).removeprefix("wandb: ").strip() for line in said.splitlines()]
    errors = [line.removeprefix("ERROR ") for line in lines if line.startswith(("ERROR", "Error"))]
    return " ".join(errors or lines[-1:])
