"""The life of a data worker: it ends when the process that it reads for says so, and at nobody else's word.

A queue or a terminal signals every process of a run. The run ends at the end of its batch and may still want data for
it, and the death of a worker is an error. A worker therefore blocks the signals in all its threads but one, which waits
for them; and as torch starts threads in it before anything of ours runs there, it is born with them blocked.
"""

from __future__ import annotations

import os
import signal
import threading
from multiprocessing.context import ForkContext, ForkProcess

HEEDED = {signal.SIGTERM, signal.SIGUSR2, signal.SIGINT}


class _Deaf(ForkProcess):
    """A process that is born with the signals blocked."""

    def start(self) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, HEEDED)
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class DeafContext(ForkContext):
    """A DataLoader's multiprocessing_context, to go with `heed_parent_only`."""

    Process = _Deaf


def heed_parent_only(worker_id: int) -> None:
    """A DataLoader's worker_init_fn, in a process of the DeafContext."""
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    while True:
        asked = signal.sigwaitinfo(HEEDED)
        if asked.si_signo == signal.SIGTERM and asked.si_pid == parent:
            os._exit(0)
