"""squeue, sacct and scancel as scripts on a PATH of their own: they print what a test wrote and note how they ran."""

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
    """The programs in `folder`; without them SLURM is not there."""

    def __init__(self, folder: Path, programs: tuple[str, ...] = ("squeue", "sacct", "scancel")):
        folder.mkdir()
        self.folder = folder
        for name in programs:
            (folder / name).write_text(SCRIPT.format(python=sys.executable, here=str(folder)))
            (folder / name).chmod(0o755)

    def queue(self, **words: str) -> None:
        """What squeue says: task_1_0="RUNNING", …"""
        lines = (f"{name.removeprefix('task_')}|{word}" for name, word in words.items())
        (self.folder / "squeue.txt").write_text("\n".join(lines) + "\n")

    def past(self, **words: str) -> None:
        """What sacct says."""
        lines = (f"{name.removeprefix('task_')}|{word}" for name, word in words.items())
        (self.folder / "sacct.txt").write_text("\n".join(lines) + "\n")

    def refuse(self, program: str, message: str) -> None:
        """Let a program fail."""
        (self.folder / f"{program}.err").write_text(message)

    @property
    def asked(self) -> list[str]:
        """The command lines so far."""
        file = self.folder / "asked"
        return file.read_text().splitlines() if file.exists() else []

    @property
    def path(self) -> str:
        """The PATH on which nothing else of SLURM lies."""
        return str(self.folder) + os.pathsep + "/nonexistent"
