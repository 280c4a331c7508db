"""`flowdiff status SWEEP`: the state of every run of a sweep, and why."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowdiff.launch.status import Status

WIDTH_OF_FILES = 1000  # characters of a line in a file or a pipe


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, or with --json a list of objects."""
    parser = argparse.ArgumentParser(
        prog="flowdiff status",
        description="Show the state of every run of a sweep: running, queued, submitted (SLURM does not answer), done, "
        "pruned (ended early by a search), failed, stopped, or lost (its SLURM job ended without a result).",
    )
    parser.add_argument("sweep", metavar="SWEEP", help="the folder of a sweep, or of one run")
    parser.add_argument("--json", action="store_true", help="print a JSON list of objects, not a table")
    given = parser.parse_args(argv)

    from flowdiff.launch.status import statuses

    found = statuses(Path(given.sweep))
    if given.json:
        print(json.dumps([asdict(status) for status in found], indent=1))
    else:
        show(found)
    return 0


def show(found: Sequence[Status]) -> None:
    """Print the table; runs that need attention come first."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from flowdiff.launch.board import STYLES

    counts: Counter[str] = Counter(status.state for status in found)
    title = ", ".join(f"{counts[state]} {state}" for state in STYLES if counts[state])
    table = Table(title=title, title_justify="left")
    table.add_column("run", overflow="fold")
    table.add_column("state")
    table.add_column("steps", justify="right", no_wrap=True)
    table.add_column("loss", justify="right")
    table.add_column("", overflow="fold")
    order = list(STYLES)
    for status in sorted(found, key=lambda status: order.index(status.state)):
        steps = f"{status.step:,}" + (f"/{status.max_steps:,}" if status.max_steps else "")
        table.add_row(
            Text(status.run),
            status.state,
            steps if status.step or status.max_steps else "",
            "" if status.loss is None else f"{status.loss:.4f}",
            Text(status.note),
            style=STYLES[status.state],
        )
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH_OF_FILES)
    console.print(table)
