"""A record of the runs that a sweep on this machine is about to train, for `flowdiff status` and `flowdiff cancel`.

The process of the sweep owns the folder `<sweep>/.local/<host>-<pid>/`, like a run folder, and lists its runs
there. The folder is removed when the sweep ends, or, if some runs have not begun by then, when the next sweep starts.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from flowdiff.runs.files import write_whole
from flowdiff.runs.ownership import Owner, owned, owner

FOLDER = ".local"


@dataclass(frozen=True)
class Session:
    """runs: the names of their folders; owner: the process that trains them, None if it is dead."""

    runs: list[str]
    owner: Owner | None


@contextmanager
def recorded_session(sweep: Path, runs: Sequence[str]) -> Iterator[None]:
    """Record, during the `with`, that this process trains these runs."""
    for folder in _folders(sweep):
        if owner(folder) is None:
            shutil.rmtree(folder, ignore_errors=True)
    mine = sweep / FOLDER / f"{socket.gethostname()}-{os.getpid()}"
    try:
        with owned(mine):
            write_whole(mine / "runs.json", json.dumps(runs))
            yield
    finally:
        if all((sweep / run).is_dir() for run in runs):  # the run folders hold the rest
            shutil.rmtree(mine, ignore_errors=True)
            with suppress(OSError):
                mine.parent.rmdir()  # unless it contains the session of another process


def sessions(sweep: Path) -> list[Session]:
    """The sessions that are running, and the last one that ended early."""
    found = []
    for folder in _folders(sweep):
        try:
            runs = json.loads((folder / "runs.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):  # it is being created or removed
            continue
        if not (isinstance(runs, list) and all(isinstance(run, str) for run in runs)):
            continue
        found.append(Session(runs, owner(folder)))
    return found


def _folders(sweep: Path) -> list[Path]:
    return sorted(path for path in (sweep / FOLDER).glob("*") if path.is_dir())
