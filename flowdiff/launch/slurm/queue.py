"""What SLURM knows of the jobs of a sweep: `squeue`, and `sacct` for jobs it has forgotten; neither need be there."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from flowdiff.launch.slurm.submission import Submission

PATIENCE = 30  # seconds for an answer of a busy controller
# SLURM's words for a job that still has a future; all others are ends.
RUNNING = {"RUNNING", "COMPLETING", "CONFIGURING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED"}
PENDING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}

Place = Literal["queued", "running"]


def jobs_of(submissions: Iterable[Submission]) -> dict[str, str]:
    """Of each run the SLURM job, `<job_id>_<task>`, that was to train it last."""
    return {run: f"{one.job_id}_{i}" for one in submissions for i, runs in enumerate(one.tasks) for run in runs}


def queue_states(submissions: Sequence[Submission]) -> dict[str, Place] | None:
    """Where the runs are whose newest job still is in the queue; None where SLURM cannot be asked.

    A run that is "running" shares its job with others where several are packed: its folder says whether it began.
    """
    words = job_words({one.job_id for one in submissions})
    if words is None:
        return None
    places = {run: place(words[job]) for run, job in jobs_of(submissions).items() if job in words}
    return {run: where for run, where in places.items() if where is not None}


def place(word: str) -> Place | None:
    """SLURM's word for a job's state in ours; None for one that has ended."""
    return "running" if word in RUNNING else "queued" if word in PENDING else None


def job_words(job_ids: Iterable[str]) -> dict[str, str] | None:
    """SLURM's word for the state of every array task it has in memory, the lately ended among them.

    None where there is no squeue, or no controller that answers.
    """
    wanted = sorted(set(job_ids))
    if not wanted:
        return {}
    answer = _ask(["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T", f"--jobs={','.join(wanted)}"])
    if isinstance(answer, str):
        # A job that ended long ago is an error when it is the only one asked for.
        return {} if "Invalid job id" in answer else None
    return dict(fields for line in answer if len(fields := line.strip().split("|")) == 2)


def past_words(job_ids: Iterable[str]) -> Mapping[str, str]:
    """The same from the accounting, which remembers longer; empty where there is none."""
    wanted = sorted(set(job_ids))
    if not wanted:
        return {}
    answer = _ask(
        ["sacct", "--noheader", "--allocations", "--parsable2", "--format=JobID,State", f"--jobs={','.join(wanted)}"]
    )
    if isinstance(answer, str):
        return {}
    pairs = (line.strip().split("|") for line in answer)
    return {pair[0]: pair[1].split()[0] for pair in pairs if len(pair) == 2 and pair[1]}  # "CANCELLED by 1000"


def _ask(command: Sequence[str]) -> list[str] | str:
    """The lines a SLURM command prints, or what it complains about."""
    # SQUEUE_USERS and their like would filter what we ask for.
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("SQUEUE_", "SACCT_"))}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stdout.splitlines() if done.returncode == 0 else done.stderr or "it failed"
