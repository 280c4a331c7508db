"""The record of the jobs that a sweep has submitted to SLURM, read later by `flowdiff status` and `flowdiff cancel`.

`<sweep>/slurm/submissions.json` is a list in order of submission; a sweep that was run again has several.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flowdiff.errors import RunError
from flowdiff.runs.files import disk_errors, file_lock, write_whole

FOLDER = "slurm"  # in the sweep folder; not a run


@dataclass(frozen=True)
class Submission:
    """One array job. tasks[i]: names of the run folders that array task i, the SLURM job `<job_id>_<i>`, trains."""

    job_id: str
    submitted: str  # ISO 8601
    command: list[str]
    git_commit: str | None
    tasks: list[list[str]]


def record(sweep: Path, submission: Submission) -> None:
    """Append a submission, atomically and safe against other processes; RunError on a full disk."""
    with _locked(sweep) as folder:
        written = [asdict(one) for one in [*submissions(sweep), submission]]
        write_whole(folder / "submissions.json", json.dumps(written, indent=1) + "\n")


def submissions(sweep: Path) -> list[Submission]:
    """All submissions of a sweep, the earliest first; RunError if the file cannot be read."""
    file = sweep / FOLDER / "submissions.json"
    try:
        return [_submission(fields) for fields in json.loads(file.read_text(encoding="utf-8"))]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError, TypeError) as error:
        raise RunError(
            f"{file} cannot be read ({type(error).__name__}): fix or remove it; without it flowdiff does not know "
            "which jobs in SLURM's queue belong to this sweep (see squeue)."
        ) from error


def _submission(fields: dict[str, Any]) -> Submission:
    """A submission from its JSON; TypeError if a value has another type."""
    made = Submission(**fields)
    tasks = made.tasks if isinstance(made.tasks, list) else [None]
    if not isinstance(made.job_id, str) or not all(isinstance(task, list) for task in tasks):
        raise TypeError("job_id is a text and tasks a list of lists")
    return made


def record_cancelled(sweep: Path, jobs: Iterable[str]) -> None:
    """Record that these jobs, `<job_id>_<task>`, are cancelled: their runs are stopped, not lost, and not requeued."""
    with _locked(sweep) as folder:
        noted = sorted(cancelled_jobs(sweep) | set(jobs))
        write_whole(folder / "cancelled.json", json.dumps(noted, indent=1) + "\n")


def cancelled_jobs(sweep: Path) -> set[str]:
    """The jobs that were cancelled."""
    with suppress(OSError, ValueError, TypeError):
        return set(json.loads((sweep / FOLDER / "cancelled.json").read_text(encoding="utf-8")))
    return set()


@contextmanager
def _locked(sweep: Path) -> Iterator[Path]:
    """The folder of the records, locked against other processes."""
    folder = sweep / FOLDER
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with file_lock(folder):
        yield folder
