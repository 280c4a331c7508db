"""One task of an array job: its runs, and, when it has ended, whether SLURM is to start it again.

The batch script calls the `Task` under srun (through submitit) and then, whatever became of that, `python -m
flowdiff.launch.slurm.task`, so that a task is also started again when every process of it was killed. SIGUSR2 or SIGTERM
makes the runs save at the end of their batch; the task then ends with STOPPED and is put back into the queue, where its
next start goes on in the same folders. A task that was cancelled is left alone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flowdiff.launch.local import BUSY, FAILED, LocalPool, Worker, train_here
from flowdiff.launch.slots import Slot, available_cores, visible_gpus
from flowdiff.launch.slurm.submission import FOLDER, submissions
from flowdiff.runs.job import Job, is_first_rank
from flowdiff.runs.lock import HEARTBEAT, SILENCE, owner
from flowdiff.runs.signals import STOPPED, heed

KILLED = 128 + signal.SIGKILL  # as srun reports it
RECORDED = 120.0  # seconds within which whoever submitted has written the record
EARLY = 90.0  # seconds: SLURM may send the signal this much before it was asked to

Reason = Literal["preemption", "time limit", "kill"]


@dataclass(frozen=True)
class Limits:
    """How often a task may be started again: after its time limit, and after it was killed; preemption has no limit.

    signal_delay_s: seconds before the time limit at which SLURM was asked for SIGUSR2.
    """

    signal_delay_s: int
    max_timeouts: int
    max_kills: int


@dataclass(frozen=True)
class Task:
    """The runs of one array task, at once on its devices. Plain values only: it travels by pickle."""

    jobs: tuple[Job, ...]
    worker: Worker
    limits: Limits

    def __call__(self) -> None:
        """Train what is not done; SystemExit with FAILED, BUSY, STOPPED or KILLED unless all ended well."""
        heed()  # in place of submitit, which knows nothing of saving
        first = self.jobs[0]
        wait_for(lambda: _recorded(first.path.parent), RECORDED, "its submission was not recorded: submit it again")
        if is_first_rank():  # the next start of a task may find the lock of the one before, on another host
            wait_for(lambda: not any(owner(job.path) for job in self.jobs), SILENCE + HEARTBEAT, "")
        if len(self.jobs) > 1:
            self._pack()
        elif first.verdict("none", force=False) == "run":
            train_here(self.worker, first, Slot(None, available_cores()))

    def _pack(self) -> None:
        """Several runs, each in a process of its own."""
        on_cpu = all(job.config["accelerator"]["kind"] == "cpu" for job in self.jobs)
        devices = 1 if on_cpu else max(1, len(visible_gpus()))
        pool = LocalPool(self.worker, -(-len(self.jobs) // devices), killed_is="stopped")
        states = {row.state for row in pool.run(self.jobs, "none", force=False)}
        for state, status in (("stopped", KILLED), ("busy", BUSY), ("failed", FAILED)):
            if state in states:
                sys.exit(status)

    def ended(self, status: int, slurm_job: str) -> None:
        """What is to be done when srun has ended with this exit status: nothing, start again, or leave failed.json."""
        left = [job for job in self.jobs if job.verdict("none", force=False) == "run"]
        if not left or status == BUSY:
            return
        if status <= 128:
            _fail(left, f"its task ended with exit status {status} and no result; see {_logs(left[0], slurm_job)}.")
            return
        now = QueuedJob.ask(slurm_job)
        if not now.may_start_again:
            print(f"{slurm_job} ended as SLURM wanted: it is not put back into the queue", flush=True)
            return
        stopped = status in (STOPPED, 128 + signal.SIGUSR2)
        reason: Reason = "kill" if not stopped else "time limit" if now.timed_out(self.limits) else "preemption"
        before = _starts(left[0], slurm_job).count(reason)
        allowed = {"kill": self.limits.max_kills, "time limit": self.limits.max_timeouts}.get(reason, before + 1)
        if before >= allowed:
            _fail(left, _too_often(reason, before + 1, status))
            return
        _write_start(left[0], slurm_job, reason)
        print(f"{slurm_job} ended by {reason}: back into the queue with {len(left)} unfinished runs", flush=True)
        subprocess.run(["scontrol", "requeue", slurm_job], check=False)


@dataclass(frozen=True)
class QueuedJob:
    """What squeue says of a job of ours that is just ending: state, reason, seconds it ran and may run."""

    state: str
    reason: str
    used: float
    limit: float

    @classmethod
    def ask(cls, slurm_job: str) -> QueuedJob:
        """Ask; a controller that does not answer is asked again, and is taken to know nothing against a start."""
        command = ["squeue", "--noheader", "--states=all", f"--jobs={slurm_job}", "--format=%T|%r|%M|%l"]
        for wait in (0, 5, 30):
            time.sleep(wait)
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0 and done.stdout.count("|") == 3:
                state, reason, used, limit = done.stdout.strip().split("|")
                return cls(state, reason, seconds(used), seconds(limit))
        return cls("RUNNING", "None", 0.0, float("inf"))

    @property
    def may_start_again(self) -> bool:
        """Whether SLURM neither was told to end it (cancelled) nor starts it again by itself (bare requeue)."""
        return self.state == "RUNNING" or self.reason == "TimeLimit"

    def timed_out(self, limits: Limits) -> bool:
        """Whether it was stopped for its time limit."""
        return self.reason == "TimeLimit" or self.used >= self.limit - limits.signal_delay_s - EARLY


def seconds(clock: str) -> float:
    """SLURM's [days-][hours:]minutes:seconds in seconds; infinite for UNLIMITED and the like."""
    days, _, rest = clock.rpartition("-")
    try:
        parts = [int(part) for part in reversed(rest.split(":"))]
        return float(int(days or 0) * 86400 + sum(part * 60**i for i, part in enumerate(parts)))
    except ValueError:
        return float("inf")


def wait_for(condition: Callable[[], bool], patience: float, otherwise: str) -> None:
    """Wait until it holds; after `patience` seconds exit with the sentence `otherwise`, or go on if that is empty."""
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            if otherwise:
                sys.exit(otherwise)
            return
        time.sleep(0.2)


def slurm_job() -> str:
    """This array task, as SLURM's commands want it named."""
    return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"


def main(folder: str, status: str) -> None:
    """What the batch script does after srun; folder: submitit's."""
    from submitit.core.utils import DelayedSubmission, JobPaths

    here = slurm_job()
    pickled = JobPaths(folder, here).submitted_pickle
    wait_for(pickled.is_file, RECORDED, f"{pickled} is missing: the submission of {here} was not completed.")
    task: Task = DelayedSubmission.load(pickled).function
    task.ended(int(status), here)
    sys.exit(int(status))


def _over(job: Job) -> bool:
    folder = job.folder
    return folder.is_complete or folder.failure() is not None or folder.pruned() is not None


def _recorded(sweep: Path) -> bool:
    return os.environ["SLURM_ARRAY_JOB_ID"] in [one.job_id for one in submissions(sweep)]


def _starts_file(job: Job, slurm_job: str) -> Path:
    return job.path.parent / FOLDER / f"{slurm_job}_requeued.jsonl"


def _starts(job: Job, slurm_job: str) -> list[Reason]:
    """Why the task was started again so far."""
    try:
        lines = _starts_file(job, slurm_job).read_text().splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line)["reason"] for line in lines]


def _write_start(job: Job, slurm_job: str, reason: Reason) -> None:
    with _starts_file(job, slurm_job).open("a") as file:
        file.write(json.dumps({"reason": reason, "time": time.strftime("%FT%T%z")}) + "\n")


def _fail(jobs: list[Job], error: str) -> None:
    for job in jobs:
        job.fail(error)


def _too_often(reason: Reason, times: int, status: int) -> str:
    again = "the same command goes on from its last checkpoint"
    if reason == "time limit":
        raising = "raise timeout_min or max_timeouts of the launcher"
        return f"its task reached its time limit {times} times: {raising}; {again}."
    name = signal.Signals(status - 128).name if status - 128 in set(signal.Signals) else f"status {status}"
    hint = " (out of memory?)" if status == KILLED else ""
    return f"its task was ended by {name} {times} times{hint}: raise mem_gb or max_kills of the launcher; {again}."


def _logs(job: Job, slurm_job: str) -> Path:
    return job.path.parent / FOLDER / f"{slurm_job}_0_log.err"


if __name__ == "__main__":
    main(*sys.argv[1:])
