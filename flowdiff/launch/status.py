"""The state of every run of a sweep, from the files in its folder and, for runs submitted to SLURM, from its queue.

A run is `done`, `pruned` or `failed` when its folder says so, and `running` when a living process writes it. Other runs
that were submitted to SLURM are `queued` or `running` as squeue says, `stopped` when they were cancelled, `lost` when
their job has ended without a result, and `submitted` when SLURM does not answer. Other runs that were begun are
`stopped`.
"""

from __future__ import annotations

import re
import socket
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flowdiff.errors import RunError
from flowdiff.launch.session import sessions
from flowdiff.launch.slurm.queue import newest_jobs, past_states, queue_state, slurm_states
from flowdiff.launch.slurm.submission import cancelled_jobs, submissions
from flowdiff.runs.job import RESUME_HINT
from flowdiff.runs.ownership import LOCK_FILE, owner
from flowdiff.runs.records import is_foreign, is_integer
from flowdiff.runs.run_folder import RunFolder

State = Literal["running", "failed", "lost", "stopped", "submitted", "queued", "pruned", "done"]


@dataclass(frozen=True)
class Status:
    """One run, by the name of its folder. step: of max_steps; loss: the last training loss; job: its SLURM job."""

    run: str
    state: State
    step: int
    max_steps: int | None
    loss: float | None
    note: str
    job: str | None


def statuses(sweep: Path) -> list[Status]:
    """The state of every run of a sweep, begun or not; RunError if the folder is missing or contains no run.

    A run folder counts as a sweep of one run.
    """
    if not sweep.is_dir():
        raise RunError(f"{sweep} does not exist: give the folder of a sweep, e.g. one below multirun/.")
    if (sweep / "config.yaml").is_file():
        if is_foreign(sweep):
            RunFolder.open(sweep)  # raises the error that says so
        return _Snapshot(sweep.parent, [sweep.name]).statuses()
    begun = [path.name for path in sweep.iterdir() if path.is_dir() and _is_run(path)]
    snapshot = _Snapshot(sweep, begun)
    if not snapshot.runs:
        raise RunError(f"{sweep} contains no run: give the folder of a sweep, e.g. one below multirun/.")
    return snapshot.statuses()


class _Snapshot:
    """The records and the queue of a sweep at one moment: squeue runs once, however many runs there are."""

    def __init__(self, sweep: Path, begun: Iterable[str]):
        self.sweep = sweep
        submitted = submissions(sweep)
        self.jobs = newest_jobs(submitted)
        self.shared = {job for job, runs in Counter(self.jobs.values()).items() if runs > 1}
        self.slurm = slurm_states({one.job_id for one in submitted})
        self.cancelled = cancelled_jobs(sweep)
        self.awaited = {run: one.owner is not None for one in sessions(sweep) for run in one.runs}
        self.runs = sorted({*begun, *self.jobs, *self.awaited}, key=_natural)
        self._past: dict[str, str] | None = None

    def statuses(self) -> list[Status]:
        return [self._status(run) for run in self.runs]

    def _status(self, run: str) -> Status:
        folder = RunFolder(self.sweep / run)
        state, note = self._state(run, folder)
        step, loss = folder.progress()
        max_steps = _max_steps(folder)
        step = min(step, max_steps or step)
        return Status(run, state, step, max_steps, loss, note, self.jobs.get(run))

    def _state(self, run: str, folder: RunFolder) -> tuple[State, str]:
        if folder.is_complete:
            return "done", ""
        writer = owner(folder.path)
        job = self.jobs.get(run)
        # A process on another host is only known to have been alive a while ago; about a job SLURM knows better.
        if writer and (job is None or self.slurm is None or writer["host"] == socket.gethostname()):
            return "running", f"process {writer['pid']} on {writer['host']}"
        failure = folder.failure()
        if failure is not None:
            return "failed", failure
        if pruned := folder.pruned():
            return "pruned", f"at step {pruned['step']} by a search"
        if job is not None and not self.awaited.get(run):
            return self._submitted(job, begun=writer is not None)
        if self.awaited.get(run):
            return "queued", ""
        return "stopped", RESUME_HINT if folder.checkpoint.is_file() else "the same command starts it"

    def _submitted(self, job: str, begun: bool) -> tuple[State, str]:
        if self.slurm is None:
            return "submitted", f"job {job}; SLURM does not answer here"
        found = self.slurm.get(job)
        state = queue_state(found) if found else None
        if state == "running" and job in self.shared and not begun:
            return "queued", f"job {job} is running other runs first"
        if state is not None:
            return state, f"job {job}" + ("" if found in ("PENDING", "RUNNING") else f" is {found}")
        if job in self.cancelled:
            return "stopped", f"cancelled; {RESUME_HINT}"
        found = found or self._accounted(job)
        return "lost", f"job {job} ended{f' as {found}' if found else ''} without a result; {RESUME_HINT}"

    def _accounted(self, job: str) -> str | None:
        if self._past is None:
            self._past = past_states({job.partition("_")[0] for job in self.jobs.values()})
        return self._past.get(job)


def _is_run(path: Path) -> bool:
    """Whether a folder belongs to a run, even one that has only just begun, and not to another program."""
    if path.name.startswith(".") or is_foreign(path):
        return False
    return any((path / name).exists() for name in ("config.yaml", "failed.json", LOCK_FILE))


def _max_steps(folder: RunFolder) -> int | None:
    """Steps of the whole run; None if its config does not say."""
    try:
        trainer = folder.config().get("trainer")
    except RunError:
        return None
    steps = trainer.get("max_steps") if isinstance(trainer, dict) else None
    return steps if is_integer(steps) else None


def _natural(name: str) -> list[int | str]:
    """A sort key that puts seed-2 before seed-10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
