"""`flowdiff cancel SWEEP`: stop a sweep; its command continues it later."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flowdiff.errors import RunError

if TYPE_CHECKING:
    from flowdiff.runs.ownership import Owner


def main(argv: Sequence[str] | None = None) -> int:
    """Cancel the sweep's SLURM jobs and ask its processes on this machine to save and stop."""
    parser = argparse.ArgumentParser(
        prog="flowdiff cancel",
        description="Stop a sweep: cancel its SLURM jobs, and let its processes on this machine save and stop. The "
        "command that started the sweep continues it later.",
    )
    parser.add_argument("sweep", metavar="SWEEP", help="the folder of a sweep, or of one run")
    given = parser.parse_args(argv)

    from flowdiff.launch.status import statuses

    sweep = Path(given.sweep)
    alive = [status for status in statuses(sweep) if status.state in ("queued", "running", "submitted")]
    if (sweep / "config.yaml").is_file():
        sweep = sweep.parent
    done = _cancel_jobs(sweep, {status.job for status in alive if status.job})
    done += _stop_processes(sweep, {status.run for status in alive})
    for line in done or ["nothing to cancel: no run is queued or running."]:
        print(line)
    return 0


def _cancel_jobs(sweep: Path, jobs: set[str]) -> list[str]:
    from flowdiff.launch.slurm.queue import queue_state, slurm_states
    from flowdiff.launch.slurm.submission import record_cancelled

    states = slurm_states({job.partition("_")[0] for job in jobs})
    if states is None:
        raise RunError(
            f"squeue does not answer on this machine about the jobs of {sweep}: repeat this where squeue and scancel "
            f"work, or cancel {', '.join(sorted(jobs))} there."
        )
    waiting = sorted(job for job in jobs if queue_state(states.get(job, "")))
    if not waiting:
        return []
    record_cancelled(sweep, waiting)  # first: a job that ends looks here whether to requeue itself
    done = subprocess.run(["scancel", *waiting], capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode:
        raise RunError(f"scancel refused: {' '.join(done.stderr.split())}")
    arrays = sorted({job.partition("_")[0] for job in waiting}, key=int)
    return [f"cancelled {len(waiting)} tasks of SLURM job {', '.join(arrays)}"]


def _stop_processes(sweep: Path, runs: set[str]) -> list[str]:
    """Stop each process once: the leader of a sweep, which stops its runs' processes; else the run's own process."""
    from flowdiff.launch.session import sessions
    from flowdiff.launch.slurm.queue import newest_jobs
    from flowdiff.launch.slurm.submission import submissions
    from flowdiff.runs.ownership import owner

    in_jobs = set(newest_jobs(submissions(sweep)))
    leaders = [one for one in sessions(sweep) if one.owner and runs & set(one.runs)]
    led = {run for one in leaders for run in one.runs}
    owners = [one.owner for one in leaders] + [owner(sweep / run) for run in sorted(runs - led - in_jobs)]
    return [_stop(found) for found in owners if found]


def _stop(owner: Owner) -> str:
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
