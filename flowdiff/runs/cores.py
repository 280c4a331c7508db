"""The CPU cores that a process may use, and how many threads the user allows it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

# The libraries that compute read their number of threads from these variables when they are imported.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
THREADS_OF_USER = "FLOWDIFF_THREADS_OF_USER"  # what the user had set before a sweep set THREAD_VARIABLES; may be empty


def available_cores() -> int:
    """Number of cores that this process may use: the least of its affinity, cgroup quota and SLURM task's share."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(ValueError):  # it may be set and empty
        cores = max(1, min(cores, int(os.environ.get("SLURM_CPUS_PER_TASK", cores))))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroup v2, or no quota: "max"
        return cores


def threads_of_user() -> int | None:
    """The number of threads ≥ 1 that the user has set in the environment, or None."""
    given = [os.environ[THREADS_OF_USER]] if THREADS_OF_USER in os.environ else map(os.environ.get, THREAD_VARIABLES)
    numbers = [int(value) for value in given if value and value.isascii() and value.isdigit()]
    return max(1, min(numbers)) if numbers else None


def thread_environment(threads: int) -> dict[str, str]:
    """The environment of a process that computes with so many threads; it keeps what the user had set."""
    return {THREADS_OF_USER: str(threads_of_user() or ""), **dict.fromkeys(THREAD_VARIABLES, str(threads))}
