"""What guidance trades: the Fréchet distance of samples against the share of them that is of the class asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowdiff.report.plots import COLOURS, MARKERS, series, styled
from flowdiff.report.table import Row, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ACCURACY, SCALE = "sample_accuracy", "guidance_scale"


def traded(table: Table) -> str | None:
    """The distance to draw against the accuracy, None unless a sweep of the guidance scale has measured both."""
    distances = (m for m in table.quality() if m.startswith(("fid", "fd_")))
    metric = next(distances, None)
    scales = {row.settings.get(SCALE, "") for row in _rows(table, metric)} - {""} if metric else ()
    return metric if len(scales) > 1 else None


@styled
def tradeoff(table: Table, metric: str) -> Figure:
    """A curve per setting through the guidance scales, which stand beside it; dotted is what real samples reach."""
    from matplotlib.figure import Figure

    rows = _rows(table, metric)
    names, gathered = series(rows, [p for p in table.questions() if p != SCALE])
    figure = Figure(figsize=(5.6, 3.9))
    axes = figure.subplots()
    for i, name in enumerate(dict.fromkeys(names)):
        mine = [row for row, other in zip(rows, names, strict=True) if other == name]
        mine.sort(key=lambda row: (row.settings[SCALE] == "", row.settings[SCALE]))
        points = [(row.metrics[ACCURACY][0], row.metrics[metric][0]) for row in mine]
        # What too many settings share a colour for makes no line.
        axes.plot(*zip(*points, strict=True), MARKERS[i] + ("" if gathered else "-"), color=COLOURS[i], label=name)
        for row, point in zip(mine, points, strict=True):
            if (scale := row.settings[SCALE]) != "":
                where = {"xytext": (4, 4), "textcoords": "offset points"}
                axes.annotate(f"{scale:g}", point, **where, fontsize=7, color=COLOURS[i])
    for key, draw in ((ACCURACY, axes.axvline), (metric, axes.axhline)):
        floors = {row.metrics[f"{key}_floor"][0] for row in rows if f"{key}_floor" in row.metrics}
        if len(floors) == 1:
            draw(floors.pop(), color="#5f6670", linestyle=":", linewidth=1.1, zorder=1)
    axes.set_xlabel(f"{ACCURACY} →")
    axes.set_title(f"{metric} ↓", loc="left", fontsize=9, fontweight="bold")
    if len(set(names)) > 1:
        figure.legend(loc="outside lower left", ncols=2)
    return figure


def _rows(table: Table, metric: str) -> list[Row]:
    return [row for row in table.rows if {ACCURACY, metric} <= row.metrics.keys() and SCALE in row.settings]
