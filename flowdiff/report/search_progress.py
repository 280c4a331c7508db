"""The trials of a search as a table in the terminal and as a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flowdiff.launch.search.trial_row import TrialRow
from flowdiff.report.style import COLOURS, log_axis, png, styled
from flowdiff.report.text import number_text, short_key

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

ROW_STYLES = {"complete": "", "pruned": "dim", "failed": "red", "open": "yellow"}


def table(rows: Sequence[TrialRow], metric: str) -> Table:
    """One line per trial, the best one marked."""
    from rich.table import Table
    from rich.text import Text

    keys = list(dict.fromkeys(key for row in rows for key in row.params))
    shown = Table(title=f"{len(rows)} trials", title_justify="left")
    shown.add_column("trial", justify="right")
    for key in keys:
        shown.add_column(Text(short_key(key)), justify="right", overflow="fold")
    shown.add_column(Text(metric), justify="right")
    shown.add_column("", overflow="fold")
    for row in rows:
        remark = "best" if row.best else " ".join([row.state * (row.state != "complete"), row.note]).strip()
        cells = [str(row.number), *(row.params.get(key, "") for key in keys)]
        cells += ["" if row.value is None else number_text(row.value), remark]
        shown.add_row(*map(Text, cells), style="bold green" if row.best else ROW_STYLES[row.state])
    return shown


def print_table(rows: Sequence[TrialRow], metric: str) -> None:
    """Print the table of the trials."""
    from rich.console import Console

    Console().print(table(rows, metric))


def draw(rows: Sequence[TrialRow], metric: str, direction: str, importances: Mapping[str, float], path: Path) -> None:
    """Write the picture of the trials as a PNG file; the arguments are those of `picture`."""
    path.write_bytes(png(picture(rows, metric, direction, importances)))


@styled
def picture(rows: Sequence[TrialRow], metric: str, direction: str, importances: Mapping[str, float]) -> Figure:
    """The value of every trial with the best so far, beside it the importance of each parameter.

    Args:
        rows: the trials, at least one of them complete.
        metric: name of the value.
        direction: minimize or maximize.
        importances: parameter to its share of the importance; empty for none, then there is no second panel.
    """
    from matplotlib.figure import Figure

    panels = 2 if importances else 1
    figure = Figure(figsize=(5.2 * panels, 3.4))
    axes = figure.subplots(1, panels, squeeze=False)[0]
    _draw_history(axes[0], rows, metric, min if direction == "minimize" else max)
    if importances:
        _draw_importances(axes[1], importances)
    return figure


def _draw_history(axes: Axes, rows: Sequence[TrialRow], metric: str, better: Callable[[list[float]], float]) -> None:
    complete = [(row.number, row.value) for row in rows if row.value is not None]
    pruned = [(row.number, row.curve[max(row.curve)]) for row in rows if row.state == "pruned" and row.curve]
    numbers, values = [number for number, _ in complete], [value for _, value in complete]
    axes.plot(numbers, values, "o", color=COLOURS[0], label="complete")
    if pruned:
        axes.plot(*zip(*pruned, strict=True), "x", color="#8a9099", label="pruned (last value)")
    best = [better(values[: i + 1]) for i in range(len(values))]
    axes.step(numbers, best, where="post", color=COLOURS[1], label="best so far", zorder=1)
    if min(values) > 0 and max(values) > 20 * min(values):
        log_axis(axes, "y")
    axes.locator_params("x", integer=True)
    axes.set(xlabel="trial", ylabel=metric)
    axes.legend()


def _draw_importances(axes: Axes, importances: Mapping[str, float]) -> None:
    ordered = sorted(importances.items(), key=lambda item: item[1])
    names, shares = [short_key(key) for key, _ in ordered], [share for _, share in ordered]
    bars = axes.barh(names, shares, color=COLOURS[0], height=0.6)
    axes.bar_label(bars, fmt="{:.2f}", padding=3, fontsize=8)
    axes.set(xlabel="importance (PED-ANOVA)", xlim=(0, 1.12 * max(importances.values())))
    axes.grid(False, axis="y")
