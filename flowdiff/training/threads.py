"""How many CPU threads torch computes with: one for small operations and on a busy machine, otherwise all.

The threads of torch's pool share the work of one operation and wait for each other at its end, and they wait by
spinning. Two threads therefore gain little where an operation is short: 1.07× for a step of 0.3 million FLOPs per
operation, 1.1× – 1.4× up to a million, 1.5× – 1.7× beyond. On a busy machine they lose: one thread that waits for a
core makes all others spin. Beside four busy loops on two cores, two threads train the default model 20 times more
slowly than one (benchmarks/threads.py).

The first choice depends on the model alone and is the same in every run. The second depends on how long the threads of
this process have waited for a core. A number that the user has set in the environment (OMP_NUM_THREADS,
MKL_NUM_THREADS) is never changed.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from flowdiff.runs.cores import available_cores, threads_of_user

log = logging.getLogger(__name__)

MIN_WORK = 1e6  # FLOPs per operation from which all threads are used
COUNTED = 8  # samples in the batch whose work is counted
WINDOW = 2.0  # seconds between two looks at how long the threads have waited
BUSY, FREE = 0.25, 0.05  # waiting threads on average: more than BUSY halve their number, fewer than FREE may double it
PATIENCE, MAX_PATIENCE = 8.0, 300.0  # seconds before the number grows again; they double each time it was wrong


class Threads:
    """The number of threads of torch in this process, adapted to a model and to the load of the machine.

    It begins with one thread.

    Args:
        available: the largest number of threads, ≥ 1.
        waited: seconds that the threads of this process have waited for a core so far.
    """

    def __init__(self, available: int, waited: Callable[[], float]):
        self.available = available
        self.most = 1
        self._waited = waited
        self._patience = PATIENCE
        self._last_drop: float | None = None
        self._grew = False  # whether the last change was to more threads
        self._since, self._waited_before = time.monotonic(), waited()
        self._use(1)

    def choose(self, work: float) -> None:
        """Choose the number for operations of `work` FLOPs; one if threads have waited for a core until now."""
        self.most = self.available if work >= MIN_WORK else 1
        if self._look() > BUSY:
            self._last_drop = time.monotonic()
        else:
            self._use(self.most)

    @property
    def description(self) -> str:
        """The number of threads, of how many, and why."""
        if self.used == self.available:
            return f"{self.used} thread{'s' if self.used > 1 else ''}"
        why = "small operations" if self.used == self.most else "the machine is busy"
        return f"{self.used} of {self.available} threads ({why})"

    def adapt(self) -> None:
        """Take fewer threads if they have waited for a core since the last look, and more after some time without."""
        now = time.monotonic()
        if self.most == 1 or now - self._since < WINDOW:
            return
        waiting, drop = self._look(), self._last_drop
        if waiting > BUSY and self.used > 1:
            if drop is None:
                log.info("other programs use the cores: computing with fewer threads while they do")
            if self._grew:  # too early
                self._patience = min(2 * self._patience, MAX_PATIENCE)
            self._last_drop, self._grew = now, False
            self._use(max(1, self.used // 2))
        elif waiting < FREE and self.used < self.most and (drop is None or now - drop > self._patience):
            self._grew = True
            self._use(min(self.most, 2 * self.used))

    def _look(self) -> float:
        """How many threads have waited for a core on average since the last look."""
        now, waited = time.monotonic(), self._waited()
        waiting = max(0.0, waited - self._waited_before) / max(now - self._since, 1e-9)
        self._since, self._waited_before = now, waited
        return waiting

    def _use(self, number: int) -> None:
        self.used = number
        torch.set_num_threads(number)


def threads_for(compute: Callable[[int], object], batch_size: int) -> Threads | None:
    """Choose the number of threads for a computation; None if this process is to keep the number that it has.

    Args:
        compute: computes n samples; what it changes must not matter.
        batch_size: number of samples that will be computed together.
    """
    available = min(torch.get_num_threads(), available_cores())
    if available == 1 or threads_of_user() is not None:
        return None
    threads = Threads(available, seconds_waited)
    threads.choose(work_per_operation(compute, batch_size))
    return threads


def work_per_operation(compute: Callable[[int], object], batch_size: int) -> float:
    """FLOPs of the matrix products and convolutions of a computation, divided by its number of tensor operations.

    Args:
        compute: computes n samples.
        batch_size: number of samples; COUNTED of them are computed, and the FLOPs grow in proportion.
    """
    n = min(batch_size, COUNTED)
    # Only a process that has imported the compiler can have compiled something, and importing it takes seconds.
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    with torch.random.fork_rng(devices=[]), eager, _Counter() as counter:
        compute(n)
    return counter.flops * (batch_size / n) / max(1, counter.operations)


class _Counter(TorchDispatchMode):
    """Counts tensor operations and their FLOPs inside the `with`."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.flops = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise torch imports its compiler

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.operations += 1
        if flops := flop_registry.get(func.overloadpacket):
            self.flops += flops(*args, **(kwargs or {}), out_val=out)
        return out


def seconds_waited() -> float:
    """Seconds that the threads of this process were ready to run and waited for a core; 0 where this is not counted."""
    nanoseconds = 0
    try:
        for task in os.scandir("/proc/self/task"):
            nanoseconds += int(Path(task, "schedstat").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):  # a thread has ended, or this is not Linux
        pass
    return nanoseconds / 1e9
