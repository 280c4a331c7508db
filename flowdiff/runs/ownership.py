"""A run folder is written by one process at a time: its owner.

The file `.lock` in the folder names the owner, and its modification time is the owner's heartbeat. The lock is stale,
and may be taken over, when the owner on this host is dead (or its pid belongs to another process by now), or when an
owner on another host has sent no heartbeat for `MAX_SILENCE` seconds. Checking and taking is one step, under a file
lock.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypedDict

from flowdiff.errors import RunError
from flowdiff.runs.files import disk_errors, file_lock

LOCK_FILE = ".lock"
HEARTBEAT = 15.0  # seconds between two heartbeats
MAX_SILENCE = (
    300.0  # seconds without a heartbeat after which an owner on another host counts as dead; clocks may differ
)


class Owner(TypedDict):
    """A process on some host; born: its start time, because pids are used again."""

    host: str
    pid: int
    born: str | None


class Busy(RunError):
    """Another process writes the run folder."""


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Own the run folder inside the `with`, creating it if missing; Busy when a living process owns it."""
    path = folder / LOCK_FILE
    me = this_process()
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with file_lock(path) as file:
            other = _living_owner(path)
            if other:
                raise Busy(f"{folder} is being written by process {other['pid']} on {other['host']}: wait or stop it.")
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps(me).encode(), 0)
    released = threading.Event()
    threading.Thread(target=_send_heartbeats, args=(path, me, released), daemon=True).start()
    try:
        yield
    finally:
        released.set()
        with suppress(OSError, RunError), file_lock(path):
            if _read(path) == me:
                path.unlink()


def owner(folder: Path) -> Owner | None:
    """The living process that writes the folder, or None."""
    return _living_owner(folder / LOCK_FILE)


def this_process() -> Owner:
    """This process, as it signs the lock file."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "born": _born(os.getpid())}


def _living_owner(path: Path) -> Owner | None:
    found = _read(path)
    if found is None:
        return None
    if found["host"] != socket.gethostname():
        try:
            silent = time.time() - path.stat().st_mtime
        except FileNotFoundError:
            return None
        return found if silent < MAX_SILENCE else None
    return found if _born(found["pid"]) == found["born"] is not None else None


def _read(path: Path) -> Owner | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        host, pid, born = found["host"], found["pid"], found["born"]
    except (OSError, ValueError, TypeError, KeyError):
        return None  # missing, or its owner died while writing it
    if not (isinstance(host, str) and isinstance(pid, int) and pid > 0 and (born is None or isinstance(born, str))):
        return None
    return {"host": host, "pid": pid, "born": born}


def _born(pid: int) -> str | None:
    """When a process of this host started; None when there is no such process."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return None if state in "ZX" else fields[18]
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return None
    try:  # without /proc only the pid can be checked
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "unknown"


def _send_heartbeats(path: Path, me: Owner, released: threading.Event) -> None:
    while not released.wait(HEARTBEAT):
        found = _read(path)
        if found != me and not released.is_set() and found is not None:
            # We were taken for dead (the machine slept) and replaced: writing now would spoil the other's run.
            os.kill(os.getpid(), signal.SIGKILL)
        with suppress(OSError):
            os.utime(path)
