"""`flowdiff cancel SWEEP`: stop what still is to run, so that the sweep's command can go on later."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from flowdiff.errors import RunError


def main(argv: Sequence[str] | None = None) -> int:
    """Cancel the sweep's SLURM jobs and ask its processes on this machine to save and stop."""
    parser = argparse.ArgumentParser(
        prog="flowdiff cancel",
        description="Stop a sweep: its SLURM jobs are cancelled, its processes on this machine save and stop. The same "
        "command goes on with it later.",
    )
    parser.add_argument("sweep", metavar="SWEEP", help="the folder of a sweep, or of one run")
    given = parser.parse_args(argv)

    from flowdiff.launch.status import statuses

    sweep = Path(given.sweep)
    alive = [status for status in statuses(sweep) if status.state in ("queued", "running", "submitted")]
    if (sweep / "config.yaml").is_file():
        sweep = sweep.parent
    said = _cancel_jobs(sweep, {status.job for status in alive if status.job}) + _stop_processes(
        sweep, {status.run for status in alive}
    )
    for line in said or ["nothing to cancel: no run is queued or running."]:
        print(line)
    return 0


def _cancel_jobs(sweep: Path, jobs: set[str]) -> list[str]:
    from flowdiff.launch.slurm.queue import job_words, place
    from flowdiff.launch.slurm.submission import cancel

    words = job_words({job.partition("_")[0] for job in jobs})
    if words is None:
        raise RunError(
            f"SLURM cannot be asked here about the jobs of {sweep}: repeat this where squeue and scancel work, or see "
            f"there to {', '.join(sorted(jobs))}."
        )
    waiting = sorted(job for job in jobs if place(words.get(job, "")))
    if not waiting:
        return []
    cancel(sweep, waiting)  # first: a job that is told to end asks whether it is to come back
    done = subprocess.run(["scancel", *waiting], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunError(f"scancel refused: {' '.join(done.stderr.split())}")
    arrays = sorted({job.partition("_")[0] for job in waiting}, key=int)
    return [f"cancelled {len(waiting)} tasks of SLURM job {', '.join(arrays)}"]


def _stop_processes(sweep: Path, runs: set[str]) -> list[str]:
    """Each process once: the one that leads a sweep, of whose runs each has a process too, else the run's own."""
    from flowdiff.launch.session import sessions
    from flowdiff.launch.slurm.queue import jobs_of
    from flowdiff.launch.slurm.submission import submissions
    from flowdiff.runs.lock import owner

    in_jobs = set(jobs_of(submissions(sweep)))
    leaders = [one for one in sessions(sweep) if one.owner and runs & set(one.runs)]
    led = {run for one in leaders for run in one.runs}
    owners = [one.owner for one in leaders] + [owner(sweep / run) for run in sorted(runs - led - in_jobs)]
    return [_stop(found) for found in owners if found]


def _stop(owner: dict) -> str:
    pid, host = owner["pid"], owner["host"]
    if host != socket.gethostname():
        return f"process {pid} runs on {host}: stop it there with kill -TERM {pid}"
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return f"process {pid} has just ended"
    except PermissionError:
        return f"process {pid} belongs to another user: ask them to stop it"
    return f"asked process {pid} to stop: every run saves at the end of its batch"
