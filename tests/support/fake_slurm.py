"""Fake SLURM programs: scripts that print what a test wrote, and record how they were called."""

import json
import os
import sys
from pathlib import Path
from typing import Any

SCRIPT = """#!{python} -S
import glob, json, os, pathlib, sys
here, name = pathlib.Path({here!r}), pathlib.Path(sys.argv[0]).name
call = {{"command": " ".join([name, *sys.argv[1:]]), "environment": dict(os.environ), "files": glob.glob("s/*/*")}}
with (here / "calls").open("a") as file:
    file.write(json.dumps(call) + "\\n")
answer, error = here / f"{{name}}.txt", here / f"{{name}}.err"
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

    def answer(self, program: str, text: str) -> None:
        """Set what a program prints."""
        (self.folder / f"{program}.txt").write_text(text)

    def refuse(self, program: str, message: str) -> None:
        """Let a program fail with this message."""
        (self.folder / f"{program}.err").write_text(message)

    def states(self, program: str = "squeue", **states: str) -> None:
        """Set the states that squeue or sacct prints: task_1_0="RUNNING", …"""
        self.answer(program, "".join(f"{name.removeprefix('task_')}|{state}\n" for name, state in states.items()))

    @property
    def calls(self) -> list[dict[str, Any]]:
        """The calls so far: command line, environment, and the files in the runs of the sweep `s` at that time."""
        file = self.folder / "calls"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    @property
    def asked(self) -> list[str]:
        """The command lines so far."""
        return [call["command"] for call in self.calls]

    @property
    def path(self) -> str:
        """A PATH that contains only these programs."""
        return str(self.folder) + os.pathsep + "/nonexistent"
