"""A run folder is written by one process at a time.

The lock is a file `.lock` in the folder that names its owner and whose modification time is the owner's heartbeat. It
is stale, and taken over, when its owner on this host is dead (or its pid belongs to another process by now), or when an
owner on another host has been silent for longer than `SILENCE`. Looking and taking is one step, under flock.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from flowdiff.errors import RunError

NAME = ".lock"
HEARTBEAT = 15.0  # seconds between two signs of life
SILENCE = 300.0  # seconds without one after which an owner on another host counts as dead: clocks of hosts differ a bit


class Busy(RunError):
    """Another process writes the run folder."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Own the run folder inside the `with`; Busy when a living process owns it. Makes the folder when there is none."""
    path = folder / NAME
    me = {"host": socket.gethostname(), "pid": os.getpid(), "born": _born(os.getpid())}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _opened(path) as file:
            other = _living_owner(path)
            if other:
                raise Busy(f"{folder} is being written by process {other['pid']} on {other['host']}: wait or stop it.")
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps(me).encode(), 0)
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error.strerror}; choose another place or make room.") from error
    released = threading.Event()
    threading.Thread(target=_beat, args=(path, me, released), daemon=True).start()
    try:
        yield
    finally:
        released.set()
        with suppress(OSError), _opened(path):
            if _read(path) == me:
                path.unlink()


def owner(folder: Path) -> dict[str, Any] | None:
    """The living process that writes the folder, {"host", "pid", …}, or None."""
    return _living_owner(folder / NAME)


def _living_owner(path: Path) -> dict[str, Any] | None:
    found = _read(path)
    if found is None:
        return None
    if found["host"] != socket.gethostname():
        try:
            silent = time.time() - path.stat().st_mtime
        except FileNotFoundError:
            return None
        return found if silent < SILENCE else None
    return found if _born(found["pid"]) == found["born"] is not None else None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
        return found if {"host", "pid", "born"} <= found.keys() else None
    except (OSError, ValueError, AttributeError):
        return None  # none there, or its owner died while writing it


def _born(pid: int) -> str | None:
    """When a process of this host started, None when there is none: a pid is used again, the pair is not."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else fields[18]
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return None
    try:  # no /proc: the pid alone has to do
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "unknown"


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """The lock file, open and flocked; whoever waited for one that was removed meanwhile opens the next."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            with suppress(OSError):  # a file system without flock: looking and taking are then two steps
                fcntl.flock(file, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.fstat(file).st_ino == os.stat(path).st_ino:
                    yield file
                    return
        finally:
            os.close(file)


def _beat(path: Path, me: dict[str, Any], released: threading.Event) -> None:
    while not released.wait(HEARTBEAT):
        found = _read(path)
        if found != me and not released.is_set() and found is not None:
            # Taken for dead (the machine slept) and replaced: whatever we write now would spoil the other's run.
            os.kill(os.getpid(), signal.SIGKILL)
        with suppress(OSError):
            os.utime(path)
