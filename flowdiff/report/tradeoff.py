"""The guidance trade-off: Fréchet distance of the samples against the share that shows what was asked for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from flowdiff.report.series import series
from flowdiff.report.style import COLOURS, GUIDE_COLOUR, MARKERS, drawable, fitting, set_title, styled
from flowdiff.report.table import Row, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ACCURACIES, SCALE = ("sample_accuracy", "prompts_seen", "clip_score"), "guidance_scale"  # of a class or a prompt


def tradeoff_axes(table: Table) -> tuple[str, str] | None:
    """An accuracy and the distance to plot against it; None unless both were measured at several guidance scales."""
    metric = next((m for m in table.quality() if m.startswith(("fid", "fd_"))), None)
    accuracy = next((a for a in ACCURACIES if a in table.metrics), None)
    if metric is None or accuracy is None:
        return None
    scales = {row.settings[SCALE] for row in _rows(table, accuracy, metric)} - {""}
    return (accuracy, metric) if len(scales) > 1 else None


@styled
def tradeoff(table: Table, accuracy: str, metric: str) -> Figure:
    """One curve per setting through its guidance scales, labelled; dotted lines are the values of real samples."""
    from matplotlib.figure import Figure

    rows = _rows(table, accuracy, metric)
    names, gathered = series(rows, [p for p in table.independent_parameters() if p != SCALE])
    figure = Figure(figsize=(5.6, 3.9))
    axes = figure.subplots()
    for i, name in enumerate(dict.fromkeys(names)):
        mine = [row for row, other in zip(rows, names, strict=True) if other == name]
        mine.sort(key=_scale)
        points = [(row.metrics[accuracy][0], row.metrics[metric][0]) for row in mine]
        # Settings that share a colour because they are too many do not form one line.
        axes.plot(
            *zip(*points, strict=True), MARKERS[i] + ("" if gathered else "-"), color=COLOURS[i], label=fitting(name)
        )
        for row, point in zip(mine, points, strict=True):
            if math.isfinite(scale := _scale(row)):
                label = f"{scale:g}"
                axes.annotate(label, point, (4, 4), textcoords="offset points", fontsize=7, color=COLOURS[i])
    for key, draw_line in ((accuracy, axes.axvline), (metric, axes.axhline)):
        floors = {row.metrics[f"{key}_floor"][0] for row in rows if f"{key}_floor" in row.metrics}
        if len(floors) == 1 and all(map(drawable, floors)):
            draw_line(floors.pop(), color=GUIDE_COLOUR, linestyle=":", linewidth=1.1, zorder=1)
    axes.set_xlabel(f"{accuracy} →")
    set_title(axes, f"{metric} ↓")
    if len(set(names)) > 1:
        figure.legend(loc="outside lower left", ncols=2)
    return figure


def _rows(table: Table, accuracy: str, metric: str) -> list[Row]:
    """The rows with a guidance scale that have both metrics, as numbers that can be drawn."""
    measured = (row for row in table.rows if {accuracy, metric} <= row.metrics.keys() and SCALE in row.settings)
    return [row for row in measured if drawable(row.metrics[accuracy][0]) and drawable(row.metrics[metric][0])]


def _scale(row: Row) -> float:
    """The guidance scale of a row, infinite without guidance: such rows come last."""
    scale = row.settings[SCALE]
    return scale if isinstance(scale, int | float) else math.inf
