"""The life of a data worker: it ends when the process that it reads for says so, and at nobody else's word.

A queue or a terminal signals every process of a run. The run ends at the end of its batch and may still want data for
it, and the death of a worker is an error.
"""

from __future__ import annotations

import os
import signal
import threading

HEEDED = {signal.SIGTERM, signal.SIGUSR2, signal.SIGINT}


def heed_parent_only(worker_id: int) -> None:
    """A DataLoader's worker_init_fn."""
    if threading.current_thread() is not threading.main_thread():
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, HEEDED)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    while True:
        asked = signal.sigwaitinfo(HEEDED)
        if asked.si_signo == signal.SIGTERM and asked.si_pid == parent:
            os._exit(0)
