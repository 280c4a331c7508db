"""`python task_process.py <behaviours>`: one task of an array, in the sweep `s`, whose runs end in these ways."""

import sys
from pathlib import Path

from sweep_workers import job

from flowdiff.launch.local import Worker
from flowdiff.launch.slurm.task import Limits, Task

if __name__ == "__main__":
    jobs = tuple(job(Path("s").resolve() / f"{b}-{i}", b, seed=i) for i, b in enumerate(sys.argv[1:]))
    Task(jobs, Worker("sweep_workers", "work", ("torch",)), Limits(signal_delay_s=60, max_timeouts=2, max_kills=1))()
