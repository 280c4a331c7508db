"""The trials of a search as a table in the terminal and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flowdiff.report.plots import COLOURS, styled
from flowdiff.report.table import number, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLES = {"complete": "", "pruned": "dim", "failed": "red", "open": "yellow"}


@dataclass(frozen=True)
class TrialRow:
    """One trial. state: a key of STYLES; params: override key to value as typed; value: its metric once complete.

    curve: step to metric during training; best: whether none has a better value.
    """

    number: int
    state: str
    note: str
    params: Mapping[str, str]
    value: float | None
    curve: Mapping[int, float]
    best: bool


def table(rows: Sequence[TrialRow], metric: str) -> Any:
    """A line per trial, the best one marked."""
    from rich.table import Table
    from rich.text import Text

    keys = list(dict.fromkeys(key for row in rows for key in row.params))
    shown = Table(title=f"{len(rows)} trials", title_justify="left")
    shown.add_column("trial", justify="right")
    for key in keys:
        shown.add_column(Text(short(key)), justify="right", overflow="fold")
    shown.add_column(Text(metric), justify="right")
    shown.add_column("", overflow="fold")
    for row in rows:
        said = "best" if row.best else " ".join([row.state * (row.state != "complete"), row.note]).strip()
        cells = [str(row.number), *(row.params.get(key, "") for key in keys)]
        cells += ["" if row.value is None else number(row.value), said]
        shown.add_row(*map(Text, cells), style="bold green" if row.best else STYLES[row.state])
    return shown


@styled
def picture(rows: Sequence[TrialRow], metric: str, direction: str, importances: Mapping[str, float]) -> Figure:
    """The value of every trial with the best so far, and beside it what share each parameter has in them."""
    from matplotlib.figure import Figure

    panels = 2 if importances else 1
    figure = Figure(figsize=(5.2 * panels, 3.4))
    axes = figure.subplots(1, panels, squeeze=False)[0]
    _history(axes[0], rows, metric, min if direction == "minimize" else max)
    if importances:
        _shares(axes[1], importances)
    return figure


def _history(axes: Axes, rows: Sequence[TrialRow], metric: str, better: Any) -> None:
    complete = [row for row in rows if row.value is not None]
    pruned = [row for row in rows if row.state == "pruned" and row.curve]
    axes.plot(
        [row.number for row in complete], [row.value for row in complete], "o", color=COLOURS[0], label="complete"
    )
    if pruned:
        last = [row.curve[max(row.curve)] for row in pruned]
        axes.plot([row.number for row in pruned], last, "x", color="#8a9099", label="pruned, its last value")
    best: list[float] = []
    for row in complete:
        best.append(better([*best[-1:], row.value]))
    axes.step([row.number for row in complete], best, where="post", color=COLOURS[1], label="best so far", zorder=1)
    values = [row.value for row in complete]
    if min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="trial", ylabel=metric)
    axes.legend()


def _shares(axes: Axes, importances: Mapping[str, float]) -> None:
    ordered = sorted(importances.items(), key=lambda item: item[1])
    bars = axes.barh([short(key) for key, _ in ordered], [share for _, share in ordered], color=COLOURS[0], height=0.6)
    axes.bar_label(bars, fmt="{:.2f}", padding=3, fontsize=8)
    axes.set(xlabel="importance (PED-ANOVA)", xlim=(0, 1.12 * max(importances.values())))
    axes.grid(False, axis="y")
