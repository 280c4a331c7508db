"""Running train.py and sample.py as a user would: a process of its own, in a folder of its own."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

from flowdiff.launch.run_folder import RunFolder

ROOT = Path(__file__).parents[1]


def script(name: str, *arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python <name>.py <arguments>` in cwd; nothing is asked on standard input."""
    return subprocess.run(
        [sys.executable, ROOT / f"{name}.py", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def outcomes(name: str, commands: list[list[str]], cwd: Path) -> list[tuple[int, str]]:
    """(exit status, stderr) of several `python <name>.py …`, one after the other in one process: torch loads once."""
    probe = textwrap.dedent(f"""
        import contextlib, io, json, sys
        from flowdiff.cli.{name} import main
        results = []
        for arguments in {commands!r}:
            sys.argv = ["{name}.py", *arguments]
            status, stderr = 0, io.StringIO()
            try:
                with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
                    main()
            except SystemExit as end:
                status = end.code
            results.append((status, stderr.getvalue()))
        print(json.dumps(results))
    """)
    done = subprocess.run(
        [sys.executable, "-c", probe],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
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
        process = subprocess.Popen(
            [sys.executable, ROOT / "train.py", *command],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
        )
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


def _steps(sweep: Path) -> int:
    return sum(RunFolder(path).progress()[0] for path in sweep.glob("*/"))
