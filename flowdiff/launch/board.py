"""The display of a running sweep: a live table on a terminal, one line per event elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from flowdiff.runs.run_folder import RunFolder

State = Literal["queued", "running", "done", "pruned", "skipped", "failed", "stopped", "busy"]
# In the order of the table, from top to bottom; with the further states of `flowdiff status`.
STYLES = {
    "running": "bold",
    "failed": "red",
    "lost": "red",
    "busy": "red",
    "stopped": "yellow",
    "submitted": "yellow",
    "queued": "dim",
    "pruned": "dim green",
    "done": "green",
    "skipped": "green",
}


@dataclass
class Row:
    """One run on the board. note: a sentence about its last change of state; started: time.monotonic() of its start."""

    name: str
    folder: RunFolder
    max_steps: int
    state: State = "queued"
    note: str = ""
    started: float = 0.0
    first_step: int = 0
    step: int = 0
    loss: float | None = None

    def update(self) -> None:
        """Read step and loss from the run folder."""
        step, self.loss = self.folder.progress()
        self.step = min(step, self.max_steps)

    def remaining(self) -> float | None:
        """Estimated seconds of training left; None before the first step."""
        done = self.step - self.first_step
        if self.state != "running" or done <= 0:
            return None
        return (time.monotonic() - self.started) * (self.max_steps - self.step) / done


class Board:
    """Shows the runs of a sweep; a context manager around the sweep. `change` moves a row to another state."""

    def __init__(self, rows: list[Row], console: Console | None = None):
        self.rows = rows
        self.console = console or Console()
        self._live: Live | None = None

    def __enter__(self) -> Board:
        if self.console.is_terminal:
            self._live = Live(console=self.console, get_renderable=self.table, auto_refresh=False)
            self._live.start(refresh=True)
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            with suppress(OSError):
                self._live.stop()
            self._live = None

    def change(self, row: Row, state: State, note: str = "") -> None:
        """Move a row to another state, and print it if there is no table."""
        row.state, row.note = state, note
        if state == "running":
            row.started = time.monotonic()
            row.update()
            row.first_step = row.step
        if self._live is None:
            ended = f"{sum(r.state not in ('queued', 'running') for r in self.rows)}/{len(self.rows)}"
            self.say(f"{ended:>7}  {state:<7}  {row.name}{'  ' if note else ''}{note}")

    def say(self, message: str) -> None:
        """Print one line, above the table if there is one."""
        with suppress(OSError):  # a closed terminal or a full disk must not stop the sweep
            self.console.print(message, markup=False, highlight=False, soft_wrap=True)

    def refresh(self) -> None:
        """Update the running runs, and the table if there is one."""
        for row in self.rows:
            if row.state == "running":
                row.update()
        if self._live is not None:
            with suppress(OSError):
                self._live.refresh()

    def table(self) -> Table:
        """The current table: running runs first, cut to the height of the terminal."""
        counts = self.counts()
        table = Table(title=", ".join(f"{n} {state}" for state, n in counts.items()), title_justify="left", expand=True)
        table.add_column("run", ratio=1, no_wrap=True, overflow="ellipsis")
        table.add_column("state")
        table.add_column("steps", justify="right")
        table.add_column("loss", justify="right")
        table.add_column("left", justify="right")
        order = list(STYLES)
        rows = sorted(self.rows, key=lambda row: order.index(row.state))
        fit = max(3, self.console.height - 7)
        for row in rows[:fit]:
            left = row.remaining()
            table.add_row(
                Text(f"{row.name}  {row.note}".rstrip()),
                row.state,
                f"{row.step:,}/{row.max_steps:,}",
                "" if row.loss is None else f"{row.loss:.4f}",
                "" if left is None else duration(left),
                style=STYLES[row.state],
            )
        if len(rows) > fit:
            table.caption = f"… and {len(rows) - fit} more"
        return table

    def counts(self) -> dict[str, int]:
        """Number of rows in each state, without the empty states."""
        found: Counter[str] = Counter(row.state for row in self.rows)
        return {state: found[state] for state in STYLES if found[state]}


def duration(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
