"""The states of a sweep's jobs in SLURM: from `squeue`, and from `sacct` for jobs that squeue has forgotten.

Neither program need be installed.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Sequence
from typing import Literal

from flowdiff.launch.slurm.submission import Submission

TIMEOUT = 30  # seconds to wait for an answer of a busy controller
# SLURM's states of a job that is not over; all others are final.
RUNNING = {"RUNNING", "COMPLETING", "CONFIGURING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED"}
PENDING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}

QueueState = Literal["queued", "running"]


def newest_jobs(submissions: Iterable[Submission]) -> dict[str, str]:
    """For each run the SLURM job, `<job_id>_<task>`, that was last submitted to train it."""
    return {run: f"{one.job_id}_{i}" for one in submissions for i, runs in enumerate(one.tasks) for run in runs}


def queued_runs(submissions: Sequence[Submission]) -> dict[str, QueueState] | None:
    """The runs whose newest job is still in the queue, and its state; None if SLURM does not answer.

    A run that is "running" may share its job with others; its folder shows whether it has begun.
    """
    found = slurm_states({one.job_id for one in submissions})
    if found is None:
        return None
    states = {run: queue_state(found[job]) for run, job in newest_jobs(submissions).items() if job in found}
    return {run: state for run, state in states.items() if state is not None}


def queue_state(slurm_state: str) -> QueueState | None:
    """SLURM's state of a job, as "queued" or "running"; None for a job that has ended."""
    return "running" if slurm_state in RUNNING else "queued" if slurm_state in PENDING else None


def slurm_states(job_ids: Iterable[str]) -> dict[str, str] | None:
    """SLURM's state of every array task that squeue knows, including tasks that ended recently.

    None if there is no squeue, or the controller does not answer.
    """
    wanted = sorted(set(job_ids))
    if not wanted:
        return {}
    answer = _lines("squeue", "--noheader", "--array", "--states=all", "--format=%i|%T", f"--jobs={','.join(wanted)}")
    if isinstance(answer, str):
        # squeue fails when the only job that is asked for ended long ago.
        return {} if "Invalid job id" in answer else None
    return dict(fields for line in answer if len(fields := line.strip().split("|")) == 2)


def past_states(job_ids: Iterable[str]) -> dict[str, str]:
    """The same from the accounting, which remembers longer; empty if there is none."""
    wanted = sorted(set(job_ids))
    if not wanted:
        return {}
    form = ("--noheader", "--allocations", "--parsable2", "--format=JobID,State")
    answer = _lines("sacct", *form, f"--jobs={','.join(wanted)}")
    if isinstance(answer, str):
        return {}
    pairs = (line.strip().split("|") for line in answer)
    return {pair[0]: pair[1].split()[0] for pair in pairs if len(pair) == 2 and pair[1]}  # "CANCELLED by 1000"


def _lines(*command: str) -> list[str] | str:
    """The lines that a SLURM command prints; its error message if it fails."""
    # SQUEUE_USERS and similar variables would filter the answer.
    env = {key: value for key, value in os.environ.items() if not key.startswith(("SQUEUE_", "SACCT_"))}
    try:
        done = subprocess.run(
            command, env=env, timeout=TIMEOUT, capture_output=True, encoding="utf-8", errors="replace", check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stdout.splitlines() if done.returncode == 0 else done.stderr or "it failed"
