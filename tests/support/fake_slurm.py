"""Fake squeue, sacct and scancel: scripts that print what a test wrote, and record their command lines."""

from __future__ import annotations

import os
import sys
from pathlib import Path

SCRIPT = """#!{python} -S
import pathlib, sys
here, name = pathlib.Path({here!r}), pathlib.Path(sys.argv[0]).name
with (here / "asked").open("a") as file:
    file.write(" ".join([name, *sys.argv[1:]]) + "\\n")
answer = here / f"{{name}}.txt"
error = here / f"{{name}}.err"
if error.exists():
    sys.exit(error.read_text())
print(answer.read_text() if answer.exists() else "")
"""


class FakeSlurm:
    """The programs in `folder`; programs=() means that SLURM is not installed."""

    def __init__(self, folder: Path, programs: tuple[str, ...] = ("squeue", "sacct", "scancel")):
        folder.mkdir()
        self.folder = folder
        for name in programs:
            (folder / name).write_text(SCRIPT.format(python=sys.executable, here=str(folder)))
            (folder / name).chmod(0o755)

    def queue(self, **states: str) -> None:
        """Set the answer of squeue: task_1_0="RUNNING", …"""
        self._answer("squeue", states)

    def past(self, **states: str) -> None:
        """Set the answer of sacct."""
        self._answer("sacct", states)

    def _answer(self, program: str, states: dict[str, str]) -> None:
        lines = (f"{name.removeprefix('task_')}|{state}\n" for name, state in states.items())
        (self.folder / f"{program}.txt").write_text("".join(lines))

    def refuse(self, program: str, message: str) -> None:
        """Let a program fail with this message."""
        (self.folder / f"{program}.err").write_text(message)

    @property
    def asked(self) -> list[str]:
        """The command lines so far."""
        file = self.folder / "asked"
        return file.read_text().splitlines() if file.exists() else []

    @property
    def path(self) -> str:
        """A PATH that contains only these programs."""
        return str(self.folder) + os.pathsep + "/nonexistent"
