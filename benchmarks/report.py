"""How long `flowdiff report` takes for a thousand finished runs, and how the page behaves in a browser.

    python benchmarks/report.py [--runs 1000] [--json FILE]

Both times are those of whole processes, with start-up and imports: `table` reads the runs, prints the table and writes
report.csv and report.md; `page` is all of `flowdiff report`. If Chromium is installed, it also measures the times to
open the page and to sort and filter the table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from browser import CHROMIUM, DRIVER, chromium  # noqa: E402
from fake_runs import write_run  # noqa: E402

LIMITS = {"table": 5.0, "page": 15.0}
TABLE = "import sys; from flowdiff.report import read; r = read(sys.argv[1:2]); r.show(); r.write_tables(sys.argv[2])"
PAGE = "import sys; from flowdiff.cli.report import main; main([sys.argv[1], '--out', sys.argv[2]])"


def make(root: Path, count: int) -> None:
    """Write `count` finished runs: n_flows × activation × learning rate × 5 seeds, 200 steps, a 242-pixel grid."""
    import numpy as np
    from PIL import Image

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
    """Seconds to open the page, and to sort and to filter all runs, each until the next frame is drawn."""
    timed = (
        "const done = arguments[arguments.length - 1], start = performance.now();"
        "{action}; requestAnimationFrame(() => setTimeout(() => done((performance.now() - start) / 1000)));"
    )
    with chromium(scratch) as browser:
        start = time.perf_counter()
        browser.open(page)
        opened = time.perf_counter() - start
        browser.choose("#view", "every run")
        sort = timed.format(action="document.querySelectorAll('#table th button')[6].click()")
        typed = "const f = document.querySelector('#filter'); f.value = 'elu n_flows=3'; f.oninput()"
        return {
            "browser: open": opened,
            "browser: sort": browser.run(sort, kind="async"),
            "browser: filter": browser.run(timed.format(action=typed), kind="async"),
        }


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
        if CHROMIUM and DRIVER:
            measured |= in_browser(out / "report.html", Path(scratch))

    print(f"{given.runs} finished runs, page of {megabytes:.1f} MB, {platform.machine()}, {os.cpu_count()} cores\n")
    print("| what | seconds | limit |\n| --- | ---: | ---: |")
    for what, value in measured.items():
        print(f"| {what} | {value:.2f} | {LIMITS.get(what, '')} |")
    times = {what: round(value, 3) for what, value in measured.items()}
    result = json.dumps({"runs": given.runs, "page_megabytes": round(megabytes, 2), "seconds": times})
    print(f"\n{result}")
    if given.json:
        given.json.write_text(result + "\n")


if __name__ == "__main__":
    main()
