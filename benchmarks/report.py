"""Seconds of `flowdiff report` for a thousand finished runs, and of its page in a browser.

    python benchmarks/report.py [--runs 1000] [--json FILE]

The first two times are of whole processes, with start-up and imports: `table` reads the runs, prints the table and
writes report.csv and report.md; `page` is all of `flowdiff report`. If Chromium is installed, the benchmark also
measures how long the page takes to open, to sort its table and to filter it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from flowdiff.testing.fake_runs import write_run

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--enable-logging=stderr")
LIMITS = {"table": 5.0, "page": 15.0}  # seconds, at most
TABLE = "import sys; from flowdiff.report import read; r = read(sys.argv[1:2]); r.show(); r.write_tables(sys.argv[2])"
PAGE = "import sys; from flowdiff.cli.report import main; main([sys.argv[1], '--out', sys.argv[2]])"
# Appended to the page: does what a reader does, and logs the seconds of each until the next frame is drawn.
READER = """<script>
addEventListener("load", async () => {
  const seconds = {}, view = document.querySelector("#view"), filter = document.querySelector("#filter");
  const timed = async (name, act, start = performance.now()) => {
    act();
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    seconds["browser: " + name] = (performance.now() - start) / 1000;
  };
  await timed("open", () => {}, 0);
  view.value = [...view.options].find((option) => option.text === "every run").value;
  view.dispatchEvent(new Event("change", {bubbles: true}));
  await timed("sort", () => document.querySelectorAll("#table th button")[6].click());
  await timed("filter", () => { filter.value = "elu n_flows=3"; filter.oninput(); });
  console.log("seconds " + JSON.stringify(seconds));
});
</script>"""


def make(root: Path, count: int) -> None:
    """Write `count` finished runs: n_flows × activation × learning rate × 5 seeds, 200 steps, a 242-pixel grid."""
    activations, rates = ("softplus", "elu", "swish", "tanh", "leakyrelu"), (1e-4, 3e-4, 1e-3, 3e-3)
    settings = itertools.product(range(1, count // 100 + 2), activations, rates, range(5))
    pixels = np.random.default_rng(0).integers(0, 256, (242, 242), dtype=np.uint8)
    Image.fromarray(pixels).save(root.parent / "samples.png")
    for n, activation, rate, seed in itertools.islice(settings, count):
        folder = root / f"flow.n_flows={n},activation={activation},optimizer.lr={rate:g},seed={seed}"
        groups = {"flow": {"n_flows": n}, "activation": {"name": activation}, "optimizer": {"lr": rate}}
        write_run(folder, seed, rows=200, picture=False, **groups)
        os.link(root.parent / "samples.png", folder / "samples.png")


def seconds(script: str, *arguments: str) -> float:
    """Wall-clock seconds of a fresh Python that runs the script."""
    path = {"PYTHONPATH": str(ROOT), "COLUMNS": "160"}
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", script, *arguments], check=True, stdout=subprocess.DEVNULL, env=os.environ | path
    )
    return time.perf_counter() - start


def in_browser(page: Path, scratch: Path) -> dict[str, float]:
    """Seconds that a browser takes to open the page, to sort all runs and to filter them."""
    page.write_text(page.read_text() + READER)
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={scratch / 'profile'}", page.resolve().as_uri()]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as browser:
        try:
            logged = (re.search(r'"seconds (\{.*?\})"', line) for line in browser.stderr)
            found = next(filter(None, logged), None)
        finally:
            browser.terminate()
    if found is None:
        raise SystemExit(f"{CHROMIUM} ended without measuring the page.")
    return json.loads(found[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result to this file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        runs, out = Path(scratch) / "runs", Path(scratch) / "report"
        make(runs, given.runs)
        measured = {"table": seconds(TABLE, str(runs), str(out)), "page": seconds(PAGE, str(runs), str(out))}
        megabytes = (out / "report.html").stat().st_size / 1e6
        if CHROMIUM:
            measured |= in_browser(out / "report.html", Path(scratch))

    print(f"{given.runs} finished runs, page of {megabytes:.1f} MB, {platform.machine()}, {os.cpu_count()} cores\n")
    print("| task | seconds | limit |\n| --- | ---: | ---: |")
    for task, value in measured.items():
        print(f"| {task} | {value:.2f} | {LIMITS.get(task, '')} |")
    times = {task: round(value, 3) for task, value in measured.items()}
    result = json.dumps({"runs": given.runs, "page_megabytes": round(megabytes, 2), "seconds": times})
    print(f"\n{result}")
    if given.json:
        given.json.write_text(result + "\n")


if __name__ == "__main__":
    main()
