"""Noise of many samples, each by its own generator, beside one torch.randn of the same size: CPU seconds.

python benchmarks/noise.py
python benchmarks/noise.py --json noise.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from flowdiff.noise import generators, randn

SHAPES = ((1, 8, 8), (3, 32, 32), (3, 64, 64))
REPEATS = 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    given = parser.parse_args()
    torch.set_num_threads(1)
    sources = generators(0, range(given.samples))
    rows = []
    for shape in SHAPES:
        size = (given.samples, *shape)
        one, many = best(lambda size=size: torch.randn(size)), best(lambda size=size: randn(size, sources))
        rows.append({"shape": list(shape), "randn_ms": 1e3 * one, "generators_ms": 1e3 * many, "ratio": many / one})
    table = Table(title=f"noise of {given.samples} samples, one thread", title_justify="left")
    for column in ("shape", "torch.randn, ms", "a generator each, ms", "ratio"):
        table.add_column(column, justify="right")
    for row in rows:
        shape = "×".join(map(str, row["shape"]))
        table.add_row(shape, f"{row['randn_ms']:.2f}", f"{row['generators_ms']:.2f}", f"{row['ratio']:.2f}")
    Console().print(table)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2) + "\n")


def best(draw: Callable[[], object]) -> float:
    """The least CPU time of some draws: other programs only add to it."""
    seconds = []
    for _ in range(REPEATS):
        began = time.process_time()
        draw()
        seconds.append(time.process_time() - began)
    return min(seconds)


if __name__ == "__main__":
    main()
