"""Python programs that tests run in processes of their own: `python commands.py <name> <arguments>`."""

import contextlib
import io
import json
import resource
import sys
import time
import traceback
import warnings
from importlib import import_module
from pathlib import Path


def outcomes(name: str, commands: str) -> None:
    """Run `python <name>.py …` for each list of arguments; print [exit status, stderr, seconds] of each. All are JSON.

    Instead of its exit status, a command that ends by another exception has the traceback.
    """

    def outcome(arguments: list[str]) -> tuple[object, str, float]:
        sys.argv = [f"{name}.py", *arguments]
        status: object = 0
        stderr, began = io.StringIO(), time.monotonic()
        try:
            with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
                import_module(f"flowdiff.cli.{name}").main()
        except SystemExit as end:
            status = end.code
        except BaseException:
            status = traceback.format_exc()
        return status, stderr.getvalue(), time.monotonic() - began

    print(json.dumps([outcome(arguments) for arguments in json.loads(commands)]))


def rehearsals(file: str) -> None:
    """`outcomes` of train.py for the lists of arguments in a file, without training: runs are built, with all parts."""
    from flowdiff.launch.sweep import rehearse
    from flowdiff.runs.job import Job

    warnings.simplefilter("ignore")
    Job.execute = lambda self, train: rehearse(self.config, self.folder) or {}
    outcomes("train", Path(file).read_text(encoding="utf-8"))


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
