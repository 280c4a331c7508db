"""The signals that ask a run to stop.

A queue sends them to every process of a job, including helper processes. A helper that must outlive its run is started
inside `stop_signals_blocked`. SIGHUP, the loss of the terminal, stops a single run; a sweep survives it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_STOPPED = 128 + signal.SIGTERM  # exit status of a process that ended because it was asked to
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)  # SIGUSR2: a queue announces that it will take the machine away


def exit_on_stop_signal() -> None:
    """Exit with EXIT_STOPPED on a stop signal, even one that is already pending. Forked children are unaffected.

    So does the loss of the terminal, unless this process ignores it (nohup).
    """
    me = os.getpid()
    leave_terminal = terminal_leaver()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() == me:
            if number == signal.SIGHUP:
                leave_terminal()
            sys.exit(EXIT_STOPPED)

    for number in stop_signals():
        signal.signal(number, end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def stop_signals() -> tuple[signal.Signals, ...]:
    """The signals that stop a run: STOP_SIGNALS, and SIGHUP unless this process ignores it (nohup)."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return STOP_SIGNALS if ignored else (*STOP_SIGNALS, signal.SIGHUP)


def terminal_leaver() -> Callable[[], None]:
    """A function to call after SIGHUP: it sends stdout and stderr to /dev/null if they are a terminal now.

    Writing to a closed terminal would be an error.
    """
    terminals = [file for file in (1, 2) if os.isatty(file)]

    def leave() -> None:
        null = os.open(os.devnull, os.O_WRONLY)
        for file in terminals:
            os.dup2(null, file)
        os.close(null)

    return leave


@contextmanager
def exiting_on_stop_signals() -> Iterator[None]:
    """`exit_on_stop_signal` during the `with`; afterwards the handlers are what they were."""
    with handlers_restored():
        exit_on_stop_signal()
        yield


@contextmanager
def handlers_restored() -> Iterator[None]:
    """After the `with` the handlers of Ctrl-C and of the stop signals are what they were before it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *stop_signals())}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Block the stop signals in this process during the `with`; processes started in it keep them blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
