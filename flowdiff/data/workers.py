"""Loader processes: they ignore the signals of a queue or terminal and stop only on SIGTERM from their parent.

A queue or a terminal signals every process of a run. The run stops at the end of its batch and may need more data
until then, and a dead loader process is an error. So a loader process blocks the signals in every thread but one,
which waits for them. torch starts threads in the process before our code runs there, so the signals are blocked
before the process starts.
"""

from __future__ import annotations

import os
import signal
import threading
from multiprocessing.context import ForkContext, ForkProcess

SIGNALS = {signal.SIGTERM, signal.SIGUSR2, signal.SIGINT}


class SignalBlockingProcess(ForkProcess):
    """A process that starts with the signals blocked."""

    def start(self) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class SignalBlockingContext(ForkContext):
    """The multiprocessing_context of a DataLoader; use it with `exit_on_parent_signal`."""

    Process = SignalBlockingProcess


def exit_on_parent_signal(worker_id: int) -> None:
    """The worker_init_fn of a DataLoader: the process exits on SIGTERM from its parent and ignores other senders."""
    threading.Thread(target=_wait_for_parent, args=(os.getppid(),), daemon=True).start()


def _wait_for_parent(parent: int) -> None:
    while True:
        received = signal.sigwaitinfo(SIGNALS)
        if received.si_signo == signal.SIGTERM and received.si_pid == parent:
            os._exit(0)
