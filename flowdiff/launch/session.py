"""Which runs a sweep on this machine is about to train, for whoever asks or stops it from another terminal.

`<sweep>/.local/<host>-<pid>/` is owned, like a run folder, by the process that runs the sweep, and lists its runs. It
stays behind when the sweep ends before all of them have begun, and goes when the next one starts.
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
from typing import Any

from flowdiff.runs.files import write_whole
from flowdiff.runs.lock import held, owner

FOLDER = ".local"


@dataclass(frozen=True)
class Session:
    """Runs, by the names of their folders, and the living process that trains them ({"host", "pid"}), if it lives."""

    runs: list[str]
    owner: dict[str, Any] | None


@contextmanager
def announced(sweep: Path, runs: Sequence[str]) -> Iterator[None]:
    """Say for the time of the `with` that this process trains these runs."""
    for folder in _folders(sweep):
        if owner(folder) is None:
            shutil.rmtree(folder, ignore_errors=True)
    mine = sweep / FOLDER / f"{socket.gethostname()}-{os.getpid()}"
    try:
        with held(mine):
            write_whole(mine / "runs.json", json.dumps(runs))
            yield
    finally:
        if all((sweep / run).is_dir() for run in runs):  # their folders tell the rest
            shutil.rmtree(mine, ignore_errors=True)
            with suppress(OSError):
                mine.parent.rmdir()  # unless another process is there too


def sessions(sweep: Path) -> list[Session]:
    """Those that run, and the last that ran."""
    found = []
    for folder in _folders(sweep):
        try:
            runs = json.loads((folder / "runs.json").read_text())
        except (OSError, ValueError):  # just being made or removed
            continue
        found.append(Session(runs, owner(folder)))
    return found


def _folders(sweep: Path) -> list[Path]:
    return sorted(path for path in (sweep / FOLDER).glob("*") if path.is_dir())
