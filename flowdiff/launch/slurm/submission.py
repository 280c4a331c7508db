"""What a sweep has handed to SLURM: written by whoever submits, read by whoever asks or cancels later.

`<sweep>/slurm/submissions.json` is a list in order of submission; a sweep that goes on after a failure has several.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from flowdiff.errors import RunError
from flowdiff.runs.files import write_whole

FOLDER = "slurm"  # of a sweep; holds no run


@dataclass(frozen=True)
class Submission:
    """One array job. tasks[i]: names of the run folders that array task i, the SLURM job `<job_id>_<i>`, trains."""

    job_id: str
    submitted: str  # ISO 8601
    command: list[str]
    git_commit: str | None
    tasks: list[list[str]]


def record(sweep: Path, submission: Submission) -> None:
    """Append a submission; whole or not at all, also when two processes do it at once. RunError on a full disk."""
    with _alone(sweep):
        written = [asdict(one) for one in [*submissions(sweep), submission]]
        write_whole(sweep / FOLDER / "submissions.json", json.dumps(written, indent=1) + "\n")


def submissions(sweep: Path) -> list[Submission]:
    """All submissions of a sweep, the earliest first; RunError where the file cannot be read."""
    file = sweep / FOLDER / "submissions.json"
    try:
        return [Submission(**fields) for fields in json.loads(file.read_text())]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError, TypeError) as error:
        raise RunError(
            f"{file} cannot be read ({type(error).__name__}): mend or remove it; without it the jobs that still are in "
            "SLURM's queue are not known to belong to this sweep (see squeue)."
        ) from error


def cancel(sweep: Path, jobs: Iterable[str]) -> None:
    """Note that these jobs, `<job_id>_<task>`, are cancelled: their runs are stopped, not lost, and not requeued."""
    with _alone(sweep):
        noted = sorted(cancelled(sweep) | set(jobs))
        write_whole(sweep / FOLDER / "cancelled.json", json.dumps(noted, indent=1) + "\n")


def cancelled(sweep: Path) -> set[str]:
    """The jobs that were cancelled."""
    with suppress(OSError, ValueError):
        return set(json.loads((sweep / FOLDER / "cancelled.json").read_text()))
    return set()


@contextmanager
def _alone(sweep: Path) -> Iterator[None]:
    """One process at a time reads and writes, where the file system knows flock."""
    folder = sweep / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        directory = os.open(folder, os.O_RDONLY)
        try:
            with suppress(OSError):
                fcntl.flock(directory, fcntl.LOCK_EX)
            yield
        finally:
            os.close(directory)
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error.strerror}; choose another place or make room.") from error
