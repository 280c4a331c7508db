"""Seconds of a sweep with flowdiff's local launcher, Hydra's basic launcher and hydra-joblib-launcher.

    pip install -e '.[bench]'
    python benchmarks/sweep.py [--runs 20] [--seconds 10] [--json FILE]

All three do the same runs: digits, with as many steps as a run with the basic launcher does in `--seconds`. The times
are of whole commands, with start-up and imports. joblib is left out if it is not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMITS = {"basic": 0.6, "joblib": 0.8}  # seconds of local / seconds of this launcher, at most
SMALL = ["metrics.frechet=false", "metrics.likelihood=false", "metrics.every_n_steps=100000", "logger=csv"]
SHORT = 50  # steps of the shorter of two runs that measure the time of one step; the longer has ten times as many


def sweep(folder: Path, launcher: str, runs: int, steps: int) -> float:
    """Seconds of one sweep, a whole command; exits if a run is not complete."""
    seeds = ",".join(map(str, range(runs)))
    options = ["-m", *SMALL, f"hydra/launcher={launcher}", f"trainer.max_steps={steps}", f"seed={seeds}"]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", *options, f"hydra.sweep.dir={folder}"],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        cwd=folder.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    taken = time.perf_counter() - start
    complete = len(list(folder.glob("*/result.json")))
    if done.returncode or complete != runs:
        sys.exit(f"{launcher}: {complete} of {runs} runs complete, exit status {done.returncode}\n{done.stderr}")
    return taken


def total_seconds(folder: Path) -> list[float]:
    """Seconds of each run of a sweep."""
    return [json.loads(path.read_text())["seconds"]["total"] for path in folder.glob("*/result.json")]


def steps_for(seconds: float, scratch: Path) -> int:
    """The number of steps of a run that takes `seconds`, from a line through the times of a short and a longer run."""
    times = {}
    for steps in (SHORT, 10 * SHORT):
        folder = scratch / f"steps-{steps}"
        sweep(folder, "basic", 2, steps)
        times[steps] = min(total_seconds(folder))
    per_step = (times[10 * SHORT] - times[SHORT]) / (9 * SHORT)
    return max(SHORT, round(SHORT + (seconds - times[SHORT]) / per_step))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=10.0, help="of one run")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    given = parser.parse_args()

    launchers = ["local", "basic"]
    if importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher"):
        launchers.append("joblib")
    else:
        print("joblib is left out, because hydra-joblib-launcher is not installed: pip install -e '.[bench]'")
    scratch = Path(tempfile.mkdtemp())
    try:
        steps = steps_for(given.seconds, scratch)
        times = {launcher: sweep(scratch / launcher, launcher, given.runs, steps) for launcher in launchers}
        runs = {launcher: sorted(total_seconds(scratch / launcher))[given.runs // 2] for launcher in launchers}
    finally:
        shutil.rmtree(scratch)

    print(f"{given.runs} runs of {steps:,} steps on {len(os.sched_getaffinity(0))} cores")
    print(f"{'launcher':<10}{'seconds':>10}{'median run':>12}{'local / other':>15}{'limit':>10}")
    for launcher, taken in times.items():
        ratio = f"{times['local'] / taken:.2f}" if launcher != "local" else ""
        limit = f"≤ {LIMITS[launcher]:.2f}" if launcher != "local" else ""
        print(f"{launcher:<10}{taken:>10.1f}{runs[launcher]:>12.1f}{ratio:>15}{limit:>10}")
    if given.json:
        about = {"machine": platform.processor() or platform.machine(), "cores": len(os.sched_getaffinity(0))}
        numbers = {"runs": given.runs, "steps": steps, "seconds": times, "median_run_seconds": runs}
        given.json.write_text(json.dumps({**about, **numbers}, indent=2) + "\n")


if __name__ == "__main__":
    main()
