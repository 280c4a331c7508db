"""Running train.py and sample.py as a user would: a process of its own, in a folder of its own.

All but those that are `fresh` are forked from an interpreter that has imported torch once: see warm_interpreter.py.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import BinaryIO

from flowdiff.runs.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
TESTS = Path(__file__).parent
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def script(name: str, *arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python <name>.py <arguments>` in cwd; nothing is asked on standard input."""
    return python(ROOT / f"{name}.py", *arguments, cwd=cwd, **environment)


def python(path: Path, *arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python <path> <arguments>`, in the same way."""
    command = [*map(str, arguments)]
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        process = Started(path, command, cwd, stdout, stderr, **environment)
        try:
            status = process.wait(600)
        finally:
            process.kill()
        said = []
        for file in (stdout, stderr):
            file.seek(0)
            said.append(file.read().decode())
    return subprocess.CompletedProcess([path, *command], status, *said)


def fresh(name: str, *arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python <name>.py <arguments>` in an interpreter that has to import everything, as a user's has."""
    return subprocess.run(
        [sys.executable, ROOT / f"{name}.py", *map(str, arguments)],
        cwd=cwd,
        env=_environment(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def outcomes(name: str, commands: list[list[str]], cwd: Path) -> list[tuple[int, str]]:
    """(exit status, stderr) of several `python <name>.py …`, one after the other in one process."""
    done = python(TESTS / "several_commands.py", name, json.dumps(commands), cwd=cwd)
    assert done.returncode == 0, done.stderr
    return [tuple(result) for result in json.loads(done.stdout.splitlines()[-1])]


def killed(command: list[str], sweep: Path, times: int, cwd: Path) -> int:
    """Start `python train.py <command>` so many times and kill it while its runs train, each time a little further on.

    The moments are drawn from a fixed seed. Stops when all runs are complete. How many times it was SIGKILL that ended
    it.
    """
    moments, ended = random.Random(0), 0
    for _ in range(times):
        known = _steps(sweep)
        with open(os.devnull, "wb") as nowhere:
            process = Started(ROOT / "train.py", command, cwd, nowhere, nowhere)
        deadline = time.monotonic() + 120
        while _steps(sweep) <= known and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 0.5))
        process.kill()
        ended += process.wait() == -signal.SIGKILL
        folders = [RunFolder(path) for path in sweep.glob("*/")]
        if folders and all(folder.is_complete for folder in folders):
            break  # a fast machine
    return ended


class Started:
    """`python <path> <arguments>` in a process forked from the warm interpreter; used like a Popen."""

    def __init__(self, path: Path, arguments: list[str], cwd: Path, stdout: BinaryIO, stderr: BinaryIO, **more: str):
        request = {"script": str(path), "arguments": arguments, "cwd": str(cwd), "environment": _environment(more)}
        answer, theirs = os.pipe()
        files = [stdout.fileno(), stderr.fileno(), theirs]
        socket.send_fds(_interpreter(), [json.dumps(request).encode()], files)
        os.close(theirs)
        self._answer = os.fdopen(answer, "rb", buffering=0)
        self.pid = int(self._answer.readline())
        self.returncode: int | None = None

    def poll(self, seconds: float | None = 0) -> int | None:
        """The exit status, or minus the signal; None if it has not ended after so many seconds."""
        if self.returncode is None and select.select([self._answer], [], [], seconds)[0]:
            with self._answer:
                self.returncode = int(self._answer.readline())
        return self.returncode

    def wait(self, seconds: float | None = None) -> int:
        status = self.poll(seconds)
        assert status is not None
        return status

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


@functools.cache
def _interpreter() -> socket.socket:
    """Where the warm interpreter of this process takes its commands; it goes when we do."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, TESTS / "warm_interpreter.py", str(theirs.fileno())],
            env=_environment(THREADS),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def _environment(more: dict[str, str]) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def _steps(sweep: Path) -> int:
    return sum(RunFolder(path).progress()[0] for path in sweep.glob("*/"))
