"""Running train.py and sample.py as a user would: a process of its own, in a folder of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

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
