"""The signals by which a run is asked to stop.

A queue sends them to every process of a job, also to those that a run has started for itself: helpers that must outlive
their run are started with the signals `withheld`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPED = 128 + signal.SIGTERM  # exit status of a process that ended because it was asked to
ASKING = (signal.SIGTERM, signal.SIGUSR2)  # SIGUSR2 comes from a queue, before it takes the machine away


def heed() -> None:
    """End this process, but none that is forked from it, with STOPPED when it is asked to stop, or was already."""
    me = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() == me:
            sys.exit(STOPPED)

    for number in ASKING:
        signal.signal(number, end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)


@contextmanager
def withheld() -> Iterator[None]:
    """Keep the signals from this process until the end of the `with`, and from what it starts in it for good."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
