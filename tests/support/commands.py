"""Python programs that tests run in processes of their own: `python commands.py <name> <arguments>`."""

import contextlib
import io
import json
import resource
import sys
from importlib import import_module
from pathlib import Path


def outcomes(name: str, commands: str) -> None:
    """Run `python <name>.py …` for each list of arguments; print [exit status, stderr] of each. All lists are JSON."""

    def outcome(arguments: list[str]) -> tuple[object, str]:
        sys.argv = [f"{name}.py", *arguments]
        status: object = 0
        stderr = io.StringIO()
        try:
            with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
                import_module(f"flowdiff.cli.{name}").main()
        except SystemExit as end:
            status = end.code
        return status, stderr.getvalue()

    print(json.dumps([outcome(arguments) for arguments in json.loads(commands)]))


def small_disk(limit: str, name: str, *arguments: str) -> None:
    """Run `python <name>.py <arguments>` on a disk that takes no file of more than `limit` bytes."""
    main = import_module(f"flowdiff.cli.{name}").main
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    sys.argv = [f"{name}.py", *arguments]
    main()


def sweep(*behaviours: str) -> None:
    """Run a sweep `s` on this machine whose runs behave in these ways, all at once."""
    from sweep_workers import WORKER, jobs

    from flowdiff.launch.local import LocalPool

    LocalPool(WORKER, len(behaviours)).run(jobs(Path("s").resolve(), *behaviours), "failed", force=False)


def task(*behaviours: str) -> None:
    """Run one task of an array job, in the sweep `s`, whose runs behave in these ways."""
    from sweep_workers import LIMITS, WORKER, jobs

    from flowdiff.launch.slurm.task import Task

    Task(jobs(Path("s").resolve(), *behaviours), WORKER, LIMITS)()


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
