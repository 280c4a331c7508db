"""Run train.py and sample.py as a user would: in a process and a folder of their own.

Except for `fresh`, the processes are forked from the fork server of multiprocessing, which has already imported torch.
"""

import csv
import gc
import json
import multiprocessing
import os
import random
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

from sweep_workers import wait_until

from flowdiff.launch.local import LocalPool, Worker
from flowdiff.runs.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
TESTS = Path(__file__).parent
REAL = Worker("flowdiff.launch.worker", "work", ("flowdiff.cli.train", "flowdiff.cli.sample", "sklearn.datasets"))


def script(name: str, *arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python <name>.py <arguments>` in cwd."""
    return python(ROOT / f"{name}.py", *arguments, cwd=cwd, **environment)


def succeed(name: str, *arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python <name>.py <arguments>` in cwd, and check that it ends well."""
    done = script(name, *arguments, cwd=cwd, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def python(path: Path, *arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python <path> <arguments>` in cwd."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "stdout"), Path(folder, "stderr")
        process = start(path, *arguments, cwd=cwd, output=output, **environment)
        try:
            process.join(600)
        finally:
            process.kill()
        return subprocess.CompletedProcess(process.name, process.exitcode, *(file.read_text() for file in output))


def start(
    path: Path, *arguments: object, cwd: Path, output: tuple[object, object] = (os.devnull,) * 2, **environment: str
) -> BaseProcess:
    """Start `python <path> <arguments>` in cwd; `output` names the files for stdout and stderr."""
    LocalPool(REAL).prepare()  # starts the server, if it does not run yet, as a sweep does
    given = str(path), [*map(str, arguments)], cwd, [*map(str, output)], _environment(environment)
    process = multiprocessing.get_context("forkserver").Process(target=_become, args=given, name=path.name)
    process.start()
    return process


def _become(path: str, arguments: list[str], cwd: Path, output: list[str], environment: dict[str, str]) -> None:
    """Behave like `python <path> <arguments>`."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the server blocks the stop signals
    gc.freeze()  # collections need not walk, and thereby copy, what the server has imported
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for place, name in enumerate(output, start=1):
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, place)
        os.close(file)
    sys.argv = [path, *arguments]
    runpy.run_path(path, run_name="__main__")


def helper(name: str, *arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program of commands.py in cwd."""
    return python(TESTS / "commands.py", name, *arguments, cwd=cwd, **environment)


def fresh(name: str, *arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python <name>.py <arguments>` in a new interpreter, which has to import everything."""
    command = [sys.executable, ROOT / f"{name}.py", *map(str, arguments)]
    quiet = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    return subprocess.run(command, cwd=cwd, env=_environment(environment), timeout=600, check=False, **quiet)


def code(text: str, *arguments: object) -> subprocess.Popen[str]:
    """Start `python -c <text> <arguments>` in a new interpreter that finds flowdiff; stdout is a pipe."""
    command = [sys.executable, "-c", text, *map(str, arguments)]
    return subprocess.Popen(command, env=_environment({}), stdout=subprocess.PIPE, text=True)


def outcomes(name: str, commands: list[list[str]], cwd: Path) -> list[tuple[int, str]]:
    """(exit status, stderr) of several `python <name>.py …`, one after the other in one process."""
    done = helper("outcomes", name, json.dumps(commands), cwd=cwd)
    assert done.returncode == 0, done.stderr
    return [(status, stderr) for status, stderr, _ in json.loads(done.stdout.splitlines()[-1])]


def check_mistakes(name: str, mistakes: list[tuple[list[str], str]], cwd: Path) -> None:
    """Check that each `python <name>.py …` ends with status 2 and one line on stderr that contains its sentence."""
    commands = [command for command, _ in mistakes]
    for (_, sentence), (status, stderr) in zip(mistakes, outcomes(name, commands, cwd), strict=True):
        assert (status, len(stderr.strip().splitlines())) == (2, 1), stderr
        assert sentence in stderr


def check_interrupted_sweep(command: list[str], times: int, cwd: Path) -> tuple[Path, Path]:
    """Run a sweep twice, and kill it a few times in between; both must succeed. Returns the folders, the killed last.

    It is killed each time after its runs have made some progress and a delay, which comes from a fixed seed.
    """
    undisturbed, killed = cwd / "undisturbed" / "s", cwd / "killed" / "s"
    delays, ended = random.Random(0), []
    for _ in range(times):
        before = _steps(killed)
        process = start(ROOT / "train.py", *command, f"hydra.sweep.dir={killed}", cwd=cwd)
        wait_until(lambda b=before, p=process: _steps(killed) > b or not p.is_alive(), 120)
        time.sleep(delays.uniform(0, 0.5))
        process.kill()
        process.join()
        ended.append(process.exitcode)
        if ended[-1] == 0:
            break  # on a fast machine
    assert -signal.SIGKILL in ended
    for folder in (undisturbed, killed):
        succeed("train", *command, f"hydra.sweep.dir={folder}", cwd=cwd)
    return undisturbed, killed


def numbers(folder: RunFolder) -> tuple[dict[str, float], list[dict[str, str]]]:
    """The metrics in a run's result.json, and the rows of its metrics.csv, without timings."""
    timings = ("samples_per_second", "train_seconds")
    with folder.metrics.open(newline="") as file:
        rows = [{key: value for key, value in row.items() if key not in timings} for row in csv.DictReader(file)]
    return {key: value for key, value in folder.result()["metrics"].items() if key not in timings}, rows


def _environment(more: dict[str, str]) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def _steps(sweep: Path) -> int:
    return sum(RunFolder(path).progress()[0] for path in sweep.glob("*/"))
