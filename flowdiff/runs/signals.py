"""The signals that ask a run to stop.

A queue sends them to every process of a job, including helper processes. A helper that must outlive its run is started
inside `stop_signals_blocked`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_STOPPED = 128 + signal.SIGTERM  # exit status of a process that ended because it was asked to
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)  # SIGUSR2: a queue announces that it will take the machine away


def exit_on_stop_signal() -> None:
    """Exit with EXIT_STOPPED on a stop signal, even one that is already pending. Forked children are unaffected."""
    me = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() == me:
            sys.exit(EXIT_STOPPED)

    for number in STOP_SIGNALS:
        signal.signal(number, end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


@contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Block the stop signals in this process during the `with`; processes started in it keep them blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
