"""One task of an array job: it trains its runs, and after it has ended decides whether SLURM starts it again.

The batch script calls the `Task` under srun (through submitit), and then always `python -m flowdiff.launch.slurm.task`,
so that a task is started again even if all of its processes were killed. On SIGUSR2 or SIGTERM the runs save at the end
of their batch; the task then ends with EXIT_STOPPED and goes back into the queue, and its next start continues in the
same folders. A cancelled task is not started again.
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
from typing import Any, Literal

from flowdiff.launch.local import EXIT_BUSY, EXIT_FAILED, LocalPool, Worker, train_here
from flowdiff.launch.slots import Slot, visible_gpus
from flowdiff.launch.slurm.submission import FOLDER, submissions
from flowdiff.runs.cores import available_cores
from flowdiff.runs.job import RESUME_HINT, Job
from flowdiff.runs.ownership import HEARTBEAT, MAX_SILENCE, owner
from flowdiff.runs.processes import is_first_rank
from flowdiff.runs.signals import EXIT_STOPPED, exit_on_stop_signal

EXIT_KILLED = 128 + signal.SIGKILL  # as srun reports it
RECORD_TIMEOUT = 120.0  # seconds to wait for the record of the submission
SIGNAL_MARGIN = 90.0  # seconds: SLURM may send the signal this much earlier than it was asked to

Reason = Literal["preemption", "time limit", "kill"]


@dataclass(frozen=True)
class Limits:
    """How often a task may be started again. After preemption there is no limit.

    Args:
        signal_delay_s: seconds before the time limit at which SLURM is asked to send SIGUSR2.
        max_timeouts: starts after its time limit, ≥ 0.
        max_kills: starts after it was killed, ≥ 0.
    """

    signal_delay_s: int
    max_timeouts: int
    max_kills: int


@dataclass(frozen=True)
class Task:
    """The runs of one array task, trained at the same time on its devices. It is pickled: plain values only."""

    jobs: tuple[Job, ...]
    worker: Worker
    limits: Limits

    def __call__(self) -> None:
        """Train the runs that are not complete.

        Raises:
            SystemExit: with EXIT_FAILED, EXIT_BUSY, EXIT_STOPPED or EXIT_KILLED, unless all runs ended well.
        """
        exit_on_stop_signal()  # replaces submitit's handler, which would not let the runs save
        first = self.jobs[0]
        sweep = first.path.parent
        array = os.environ["SLURM_ARRAY_JOB_ID"]
        recorded = "its submission was not recorded: submit it again"
        wait_for(lambda: array in [one.job_id for one in submissions(sweep)], RECORD_TIMEOUT, recorded)
        if is_first_rank():  # the previous start of this task, on another host, may still hold the lock
            wait_for(lambda: not any(owner(job.path) for job in self.jobs), MAX_SILENCE + HEARTBEAT, "")
        if len(self.jobs) > 1:
            self._pack()
        elif first.verdict("none", force=False) == "run":
            train_here(self.worker, first, Slot(None, available_cores()))

    def _pack(self) -> None:
        """Train several runs, each in its own process."""
        on_cpu = all(job.config["accelerator"]["kind"] == "cpu" for job in self.jobs)
        devices = 1 if on_cpu else max(1, len(visible_gpus()))
        pool = LocalPool(self.worker, -(-len(self.jobs) // devices), state_if_killed="stopped")
        states = {row.state for row in pool.run(self.jobs, "none", force=False)}
        for state, status in (("stopped", EXIT_KILLED), ("busy", EXIT_BUSY), ("failed", EXIT_FAILED)):
            if state in states:
                sys.exit(status)

    def finish(self, status: int, slurm_job: str) -> None:
        """After srun has ended with this exit status: do nothing, requeue the task, or write failed.json."""
        left = [job for job in self.jobs if job.verdict("none", force=False) == "run"]
        if not left or status == EXIT_BUSY:
            return
        if status <= 128:
            errors = left[0].path.parent / FOLDER / f"{slurm_job}_0_log.err"
            _fail(left, f"its task ended with exit status {status} and no result; see {errors}.")
            return
        now = QueuedJob.query(slurm_job)
        if not now.may_start_again:
            print(f"{slurm_job} was cancelled or requeued by SLURM: it is not requeued here", flush=True)
            return
        stopped = status in (EXIT_STOPPED, 128 + signal.SIGUSR2)
        reason: Reason = "kill" if not stopped else "time limit" if now.timed_out(self.limits) else "preemption"
        before = _starts(left[0], slurm_job).count(reason)
        allowed = {"kill": self.limits.max_kills, "time limit": self.limits.max_timeouts}.get(reason, before + 1)
        if before >= allowed:
            _fail(left, _too_often(reason, before + 1, status))
            return
        _write_start(left[0], slurm_job, reason)
        print(f"{slurm_job} ended by {reason}: it is requeued with {len(left)} unfinished runs", flush=True)
        subprocess.run(["scontrol", "requeue", slurm_job], check=False)


@dataclass(frozen=True)
class QueuedJob:
    """A job that is just ending, as squeue shows it. used, limit: seconds that it has run and may run."""

    state: str
    reason: str
    used: float
    limit: float

    @classmethod
    def query(cls, slurm_job: str) -> QueuedJob:
        """Ask squeue, three times if needed; without an answer the job counts as one that may start again."""
        command = ["squeue", "--noheader", "--states=all", f"--jobs={slurm_job}", "--format=%T|%r|%M|%l"]
        for wait in (0, 5, 30):
            time.sleep(wait)
            done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
            if done.returncode == 0 and done.stdout.count("|") == 3:
                state, reason, used, limit = done.stdout.strip().split("|")
                return cls(state, reason, seconds(used), seconds(limit))
        return cls("RUNNING", "None", 0.0, float("inf"))

    @property
    def may_start_again(self) -> bool:
        """Whether it was not cancelled, and is not being started again by SLURM itself (scontrol requeue)."""
        return self.state == "RUNNING" or self.reason == "TimeLimit"

    def timed_out(self, limits: Limits) -> bool:
        """Whether it was stopped because of its time limit."""
        return self.reason == "TimeLimit" or self.used >= self.limit - limits.signal_delay_s - SIGNAL_MARGIN


def seconds(clock: str) -> float:
    """SLURM's [days-][hours:]minutes:seconds in seconds; infinite for UNLIMITED and similar words."""
    days, _, rest = clock.rpartition("-")
    try:
        parts = [int(part) for part in reversed(rest.split(":"))]
        return float(int(days or 0) * 86400 + sum(part * 60**i for i, part in enumerate(parts)))
    except ValueError:
        return float("inf")


def wait_for(condition: Callable[[], bool], timeout: float, otherwise: str) -> None:
    """Wait until the condition holds; after `timeout` seconds return, or exit with the message `otherwise` if any."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            if otherwise:
                sys.exit(otherwise)
            return
        time.sleep(0.2)


def slurm_job() -> str:
    """The name of this array task for SLURM's commands."""
    return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"


def main(folder: str, status: str) -> None:
    """Called by the batch script after srun. folder: submitit's folder; status: the exit status of srun."""
    from submitit.core.utils import DelayedSubmission, JobPaths

    here = slurm_job()
    pickled = JobPaths(folder, here).submitted_pickle
    wait_for(pickled.is_file, RECORD_TIMEOUT, f"{pickled} is missing: the submission of {here} was not completed.")
    submission: Any = DelayedSubmission.load(pickled)
    task: Task = submission.function
    task.finish(int(status), here)
    sys.exit(int(status))


def _starts_file(job: Job, slurm_job: str) -> Path:
    return job.path.parent / FOLDER / f"{slurm_job}_requeued.jsonl"


def _starts(job: Job, slurm_job: str) -> list[Reason]:
    """The reasons for which the task was started again so far."""
    try:
        lines = _starts_file(job, slurm_job).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line)["reason"] for line in lines]


def _write_start(job: Job, slurm_job: str, reason: Reason) -> None:
    with _starts_file(job, slurm_job).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"reason": reason, "time": time.strftime("%FT%T%z")}) + "\n")


def _fail(jobs: list[Job], error: str) -> None:
    for job in jobs:
        job.fail(error)


def _too_often(reason: Reason, times: int, status: int) -> str:
    if reason == "time limit":
        raising = "raise timeout_min or max_timeouts of the launcher"
        return f"its task reached its time limit {times} times: {raising}; {RESUME_HINT}."
    name = signal.Signals(status - 128).name if status - 128 in set(signal.Signals) else f"status {status}"
    hint = " (out of memory?)" if status == EXIT_KILLED else ""
    return (
        f"its task was ended by {name} {times} times{hint}: raise mem_gb or max_kills of the launcher; {RESUME_HINT}."
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
