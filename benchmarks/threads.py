"""The number of CPU threads that flowdiff chooses, beside all cores and beside one, idle and beside busy programs.

    python benchmarks/threads.py --steps 300 "" network=unet

Each row is a whole `python train.py`, in a process of its own. A busy row has four `yes > /dev/null` beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from flowdiff.runs.cores import THREAD_VARIABLES, available_cores

TRAIN = Path(__file__).parent.parent / "train.py"
PROGRAMS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configurations", nargs="+", help='overrides in quotes: "" network=unet "flow=glow loss=nll"')
    parser.add_argument("--steps", type=int, default=300)
    given = parser.parse_args()
    table = Table(title=f"{given.steps} training steps on {available_cores()} cores", title_justify="left")
    for column in ("configuration", "threads", "machine", "training, s", "whole command, s", "device"):
        table.add_column(column)
    for configuration in given.configurations:
        for programs in (0, PROGRAMS):
            for threads in (None, available_cores(), 1):
                with busy(programs):
                    row = measured(configuration.split(), given.steps, threads)
                name = "chosen" if threads is None else f"OMP_NUM_THREADS={threads}"
                table.add_row(configuration or "default", name, "busy" if programs else "idle", *row)
    Console().print(table)


def measured(overrides: list[str], steps: int, threads: int | None) -> tuple[str, str, str]:
    """Seconds of training and of the whole command, and the device that the run names."""
    environment = {key: value for key, value in os.environ.items() if key not in THREAD_VARIABLES}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    with TemporaryDirectory() as folder:
        settings = ["logger=csv", f"trainer.max_steps={steps}", "metrics.num_samples=50", f"hydra.run.dir={folder}/run"]
        began = time.perf_counter()
        command = [sys.executable, str(TRAIN), *settings, *overrides]
        subprocess.run(command, env=environment, check=True, capture_output=True)
        seconds = time.perf_counter() - began
        result = json.loads(Path(folder, "run", "result.json").read_text(encoding="utf-8"))
    return f"{result['seconds']['train']:.1f}", f"{seconds:.1f}", result["device"]


@contextmanager
def busy(programs: int) -> Iterator[None]:
    """Run so many programs that never wait for anything."""
    running = [subprocess.Popen(["yes"], stdout=subprocess.DEVNULL) for _ in range(programs)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
