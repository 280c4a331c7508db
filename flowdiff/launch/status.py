"""How far every run of a sweep is, from what lies in its folder and, where runs were handed to SLURM, its queue.

A run is `done`, `pruned` or `failed` when its folder says so, `running` when a living process writes it. What else was
handed to SLURM is `queued` or `running` as squeue says, `stopped` when it was cancelled, and `lost` when its job has
ended all the same; where SLURM cannot be asked it is `submitted`. What else was begun is `stopped`.
"""

from __future__ import annotations

import re
import socket
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flowdiff.errors import RunError
from flowdiff.launch.session import sessions
from flowdiff.launch.slurm import submission
from flowdiff.launch.slurm.queue import job_words, jobs_of, past_words, place
from flowdiff.runs import lock
from flowdiff.runs.run_folder import RunFolder

State = Literal["running", "failed", "lost", "stopped", "submitted", "queued", "pruned", "done"]
AGAIN = "the same command goes on from its last checkpoint"


@dataclass(frozen=True)
class Status:
    """One run, by the name of its folder. step of max_steps; loss: the last training loss; job: SLURM's name for it."""

    run: str
    state: State
    step: int
    max_steps: int | None
    loss: float | None
    note: str
    job: str | None


def statuses(sweep: Path) -> list[Status]:
    """The state of every run that lies in a sweep folder or is about to; RunError where there is none.

    A run folder is taken for a sweep of one run.
    """
    if not sweep.is_dir():
        raise RunError(f"{sweep} does not exist: give the folder of a sweep, e.g. one below multirun/.")
    if (sweep / "config.yaml").is_file():
        return _Look(sweep.parent, [sweep.name]).statuses()
    begun = [path.name for path in sweep.iterdir() if path.is_dir() and _is_run(path)]
    look = _Look(sweep, begun)
    if not look.runs:
        raise RunError(f"{sweep} contains no run: give the folder of a sweep, e.g. one below multirun/.")
    return look.statuses()


class _Look:
    """One look at a sweep: the queue is asked once, whatever the number of runs."""

    def __init__(self, sweep: Path, begun: Iterable[str]):
        self.sweep = sweep
        submitted = submission.submissions(sweep)
        self.jobs = jobs_of(submitted)
        self.shared = {job for job, runs in Counter(self.jobs.values()).items() if runs > 1}
        self.words = job_words({one.job_id for one in submitted})
        self.cancelled = submission.cancelled(sweep)
        self.awaited = {run: one.owner is not None for one in sessions(sweep) for run in one.runs}
        self.runs = sorted({*begun, *self.jobs, *self.awaited}, key=_natural)
        self._past: Mapping[str, str] | None = None

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
        owner = lock.owner(folder.path)
        job = self.jobs.get(run)
        # Of a process on another host we know only that it was alive a while ago; of a job, SLURM knows better.
        if owner and (job is None or self.words is None or owner["host"] == socket.gethostname()):
            return "running", f"process {owner['pid']} on {owner['host']}"
        failure = folder.failure()
        if failure is not None:
            return "failed", failure
        if pruned := folder.pruned():
            return "pruned", f"at step {pruned.get('step')} by a search"
        if job is not None and not self.awaited.get(run):
            return self._submitted(job, begun=owner is not None)
        if self.awaited.get(run):
            return "queued", ""
        return "stopped", AGAIN if folder.checkpoint.is_file() else "the same command starts it"

    def _submitted(self, job: str, begun: bool) -> tuple[State, str]:
        if self.words is None:
            return "submitted", f"job {job}; SLURM does not answer here"
        word = self.words.get(job)
        where = place(word) if word else None
        if where == "running" and job in self.shared and not begun:
            return "queued", f"job {job} runs, with others before this one"
        if where is not None:
            return where, f"job {job}" + ("" if word in ("PENDING", "RUNNING") else f" is {word}")
        if job in self.cancelled:
            return "stopped", f"cancelled; {AGAIN}"
        word = word or self._remembered(job)
        return "lost", f"job {job} ended{f' as {word}' if word else ''} without a result; {AGAIN}"

    def _remembered(self, job: str) -> str | None:
        if self._past is None:
            self._past = past_words({job.partition("_")[0] for job in self.jobs.values()})
        return self._past.get(job)


def _is_run(path: Path) -> bool:
    """Whether a folder is that of a run, be it one that has only just begun."""
    return any((path / name).exists() for name in ("config.yaml", "failed.json", lock.NAME))


def _max_steps(folder: RunFolder) -> int | None:
    """Steps of the whole run; None where its config is not there or does not say."""
    try:
        settings: Any = folder.config()
        steps = settings["trainer"]["max_steps"]
    except (OSError, KeyError, TypeError, RunError):
        return None
    return steps if isinstance(steps, int) else None


def _natural(name: str) -> list[Any]:
    """seed-2 before seed-10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
