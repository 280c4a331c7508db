"""`python pool_process.py <number>`: a sweep `s` of so many runs at once, that wait until there is a file `s/go`."""

import sys
from pathlib import Path

from sweep_workers import job

from flowdiff.launch.local import LocalPool, Worker

if __name__ == "__main__":
    jobs = [job(Path("s").resolve() / str(i), "slow", i) for i in range(int(sys.argv[1]))]
    LocalPool(Worker("sweep_workers", "work", ("torch",)), len(jobs)).run(jobs, "failed", force=False)
