"""Run train.py and sample.py as a user would: in a process and a folder of their own.

Except for `fresh`, the processes are forked from an interpreter that has already imported torch: see
warm_interpreter.py.
"""

from __future__ import annotations

import atexit
import csv
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

from sweep_workers import wait_until

from flowdiff.runs.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
TESTS = Path(__file__).parent
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def script(name: str, *arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python <name>.py <arguments>` in cwd."""
    return python(ROOT / f"{name}.py", *arguments, cwd=cwd, **environment)


def python(path: Path, *arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python <path> <arguments>` in cwd."""
    command = [*map(str, arguments)]
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        process = Started(path, command, cwd, stdout, stderr, **environment)
        try:
            status = process.wait(600)
        finally:
            process.kill()
        output = []
        for file in (stdout, stderr):
            file.seek(0)
            output.append(file.read().decode())
    return subprocess.CompletedProcess([path, *command], status, *output)


def helper(name: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a program of commands.py in cwd."""
    return python(TESTS / "commands.py", name, *arguments, cwd=cwd)


def fresh(name: str, *arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python <name>.py <arguments>` in a new interpreter, which has to import everything."""
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
    done = helper("outcomes", name, json.dumps(commands), cwd=cwd)
    assert done.returncode == 0, done.stderr
    return [tuple(result) for result in json.loads(done.stdout.splitlines()[-1])]


def check_interrupted_sweep(command: list[str], times: int, cwd: Path) -> tuple[Path, Path]:
    """Run a sweep twice, and kill it a few times in between; both must succeed. Returns the folders, the killed last.

    It is killed each time after its runs have made some progress and a delay, which comes from a fixed seed.
    """
    undisturbed, killed = cwd / "undisturbed" / "s", cwd / "killed" / "s"
    delays, ended = random.Random(0), []
    for _ in range(times):
        before = _steps(killed)
        with open(os.devnull, "wb") as null:
            process = Started(ROOT / "train.py", [*command, f"hydra.sweep.dir={killed}"], cwd, null, null)
        wait_until(lambda b=before, p=process: _steps(killed) > b or p.poll() is not None, 120)
        time.sleep(delays.uniform(0, 0.5))
        process.kill()
        ended.append(process.wait())
        if ended[-1] == 0:
            break  # on a fast machine
    assert -signal.SIGKILL in ended
    for folder in (undisturbed, killed):
        done = script("train", *command, f"hydra.sweep.dir={folder}", cwd=cwd)
        assert done.returncode == 0, done.stdout + done.stderr
    return undisturbed, killed


def numbers(folder: RunFolder) -> tuple[dict[str, float], list[dict[str, str]]]:
    """The metrics in a run's result.json, and the rows of its metrics.csv, without timings."""
    timings = ("samples_per_second", "train_seconds")
    with folder.metrics.open(newline="") as file:
        rows = [{key: value for key, value in row.items() if key not in timings} for row in csv.DictReader(file)]
    return {key: value for key, value in folder.result()["metrics"].items() if key not in timings}, rows


class Started:
    """`python <path> <arguments>` in a process forked from the warm interpreter, with methods like those of Popen."""

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
    """The socket on which the warm interpreter receives commands; it ends with this process."""
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
