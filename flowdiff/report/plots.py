"""The figures of a report.

A point is the mean over the seeds of a setting, its bar one standard deviation. The Pareto front of (cost, metric)
holds the settings that no other setting beats in both.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from flowdiff.report import style
from flowdiff.report.health import CAPTION, health_curves
from flowdiff.report.series import series
from flowdiff.report.table import Row, Table, direction, is_decided_by
from flowdiff.report.text import row_title, setting_text, short_key
from flowdiff.report.tradeoff import tradeoff, tradeoff_axes
from flowdiff.runs.collect import MEASURED, Run, Value, curves

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.container import ErrorbarContainer
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.typing import ColorType

PANELS = 3  # metrics per figure
# How well samples show what their prompts ask for: an attribute classifier's judgement, and a CLIP model's.
OF_PROMPTS = ("prompts_seen", "prompts_held_out", "clip_score", "clip_recall_1")
CURVE_POINTS = 400  # points of a curve that a plot of this width can show


class Plot(NamedTuple):
    """A figure with the name of its file and the caption below it."""

    slug: str
    caption: str
    figure: Figure


class Point(NamedTuple):
    """A row in one panel: its place on the x axis, mean and sd of the metric, and the name of its series."""

    x: float
    mean: float
    sd: float
    series: str


def plots(runs: Sequence[Run], table: Table, sampling: Table) -> Iterator[Plot]:
    """Yield every plot that the runs have data for."""
    metrics = [m for m in table.quality() if m not in MEASURED.values()][:PANELS]
    for parameter in table.independent_parameters() if metrics else ():
        caption = f"Against {parameter}: mean ± sd over seeds."
        slug = re.sub(r"[^\w.-]", "_", parameter)
        yield Plot(f"by_{slug}", caption, by_parameter(table, parameter, metrics))
    judged = [m for m in _moved_by_sampling(sampling, table.parameters) if "second" not in m][:PANELS]
    for parameter, slug in (("num_steps", "sampling_steps"), ("guidance_scale", "guidance_scale")):
        if judged and len({row.settings.get(parameter, "") for row in sampling.rows} - {""}) > 1:
            caption = f"Quality against {slug.replace('_', ' ')}, from evaluations.csv."
            yield Plot(f"by_{slug}", caption, by_parameter(sampling, parameter, judged))
            if parameter == "guidance_scale" and (asked := [m for m in OF_PROMPTS if m in sampling.metrics]):
                caption = "Agreement of samples with their prompts against guidance scale, from evaluations.csv."
                yield Plot("prompts_by_guidance_scale", caption, by_parameter(sampling, parameter, asked))
    if (axes := tradeoff_axes(sampling)) is not None:
        caption = (
            f"Quality against {' '.join(axes[0].split('_'))}. Numbers are guidance scales, dotted lines the values of "
            "real samples."
        )
        yield Plot("guidance_tradeoff", caption, tradeoff(sampling, *axes))
    if judged and _varies(sampling, "nfe"):
        caption = "Sample quality against network calls per sample (nfe). The dashed line is the Pareto front."
        yield Plot("against_nfe", caption, pareto(sampling, "nfe", judged))
    quality = [m for m in metrics if "per_second" not in m]
    front = "The dashed line is the Pareto front: the settings that no other setting beats in both."
    for cost, what in (("parameters", "number of parameters"), ("train_seconds", "seconds of training")):
        if quality and _varies(table, cost):
            yield Plot(f"against_{cost}", f"Quality against the {what}. {front}", pareto(table, cost, quality))
    if (figure := health_curves(table)) is not None:
        yield Plot("health", CAPTION, figure)
    if (figure := training_curves(runs, table)) is not None:
        yield Plot("curves", "Training curves of all runs, dashed if a run is not complete.", figure)


def _moved_by_sampling(sampling: Table, of_run: Sequence[str]) -> list[str]:
    """The metrics that differ between the samplings of a run, quality first; its likelihood does not.

    of_run: the columns that tell the runs apart.
    """
    values: dict[tuple[str, tuple[Value, ...]], set[float]] = {}
    for row in sampling.rows:
        run = tuple(row.settings[column] for column in of_run)
        for metric, (mean, _, _) in row.metrics.items():
            values.setdefault((metric, run), set()).add(mean)
    moved = {metric for (metric, _), means in values.items() if len(means) > 1}
    return [metric for metric in sampling.quality() if metric in moved]


@style.styled
def by_parameter(table: Table, parameter: str, metrics: Sequence[str]) -> Figure:
    """Each metric against one parameter: lines if it is a number, dots if it is a name.

    The other parameters make the series. If these are too many to tell apart, a series gathers several settings: each
    is a small dot, and the line or large dot is their median.
    """
    rows = [row for row in table.rows if row.settings[parameter] != ""]
    others = [p for p in table.independent_parameters() if p != parameter and not is_decided_by(rows, p, parameter)]
    names, gathered = series(rows, others)
    legend = list(dict.fromkeys(names))
    values = list(dict.fromkeys(row.settings[parameter] for row in rows))
    numeric = all(isinstance(value, int | float) and style.drawable(value) for value in values)
    places = {v: v if numeric and isinstance(v, int | float) else i for i, v in enumerate(values)}
    figure, panels = _panels(len(metrics))
    handles: dict[str, Artist | ErrorbarContainer] = {}
    for axes, metric in zip(panels, metrics, strict=True):
        points = _points(zip(names, rows, strict=True), metric, lambda row: places[row.settings[parameter]])
        for i, name in enumerate(legend):
            mine = sorted(point for point in points if point.series == name)
            shift = 0 if numeric else 0.12 * (i - (len(legend) - 1) / 2)
            draw = _draw_medians if gathered else _draw_means
            handles[name] = draw(axes, mine, shift, i, "-" if numeric else "")
        _tick_parameter(axes, places, numeric)
        _label_axes(axes, short_key(parameter), metric, [point.mean for point in points])
    _legend(figure, handles, f"median over {', '.join(map(short_key, gathered))}" if gathered else None)
    return figure


@style.styled
def pareto(table: Table, cost: str, metrics: Sequence[str]) -> Figure:
    """Each metric against a cost, coloured by setting, with the Pareto front (lower cost, better metric)."""
    rows = [row for row in table.rows if cost in row.metrics]
    names, _ = series(rows, table.independent_parameters())
    names = [name or "others" for name in names]  # rows without any of the parameters that name the other series
    legend = list(dict.fromkeys(names))
    figure, panels = _panels(len(metrics))
    handles: dict[str, Artist | ErrorbarContainer] = {}
    for axes, metric in zip(panels, metrics, strict=True):
        points = _points(zip(names, rows, strict=True), metric, lambda row: row.metrics[cost][0])
        for i, name in enumerate(legend):
            handles[name] = _draw_means(axes, [point for point in points if point.series == name], 0, i, "")
        if front := pareto_front([(point.x, point.mean) for point in points], direction(metric)):
            x, y = zip(*front, strict=True)
            axes.step(x, y, where="post", color=style.GUIDE_COLOUR, linewidth=1.1, linestyle="--", zorder=1)
        if _spans([point.x for point in points], 8):
            style.log_axis(axes, "x")
        _label_axes(axes, cost, metric, [point.mean for point in points])
    _legend(figure, handles)
    return figure


def pareto_front(points: Sequence[tuple[float, float]], sign: int) -> list[tuple[float, float]]:
    """The (cost, metric) points that no other point beats, by rising cost; the metric improves along the front.

    sign: −1 if a lower metric is better, +1 if a higher one is.
    """
    front: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -sign * point[1])):
        if not front or sign * value > sign * front[-1][1]:
            front.append((cost, value))
    return front


@style.styled
def training_curves(runs: Sequence[Run], table: Table) -> Figure | None:
    """Losses and intermediate quality against the step, the seeds of a setting in one colour; None without a curve."""
    from matplotlib.collections import LineCollection
    from matplotlib.lines import Line2D

    logged = [(run, found) for run in runs if (found := _drawable_curves(run))]
    # A curve needs at least two points.
    names = list(dict.fromkeys(name for _, found in logged for name in found if len(found[name]) > 1))[:PANELS]
    if not names:
        return None
    setting = {id(entry.run): i for i, row in enumerate(table.rows) for entry in row.entries}
    colours = _colours(len(table.rows))
    figure, panels = _panels(len(names))
    for axes, name in zip(panels, names, strict=True):
        drawn = [(run, found[name]) for run, found in logged if name in found]
        lines = [[*points[:: max(1, len(points) // CURVE_POINTS)], points[-1]] for _, points in drawn]
        axes.add_collection(
            LineCollection(
                lines,
                colors=[colours[setting[id(run)]] if id(run) in setting else "#9aa3ad" for run, _ in drawn],
                linestyles=["-" if run.state == "complete" else "--" for run, _ in drawn],
                alpha=max(0.15, min(0.9, 40 / len(lines))),
                linewidths=1.3,
            )
        )
        axes.autoscale_view()
        if _spans([value for line in lines for _, value in line], 20):
            style.log_axis(axes, "y")
        axes.set_xlabel("step")
        style.set_title(axes, name)
    if 1 < len(table.rows) <= len(style.COLOURS):
        _legend(figure, {row_title(row): Line2D([], [], color=colours[i]) for i, row in enumerate(table.rows)})
    return figure


def _drawable_curves(run: Run) -> dict[str, list[tuple[float, float]]]:
    found = {
        name: [point for point in points if style.drawable(point[1])] for name, points in curves(run, _is_curve).items()
    }
    return {name: points for name, points in found.items() if points}


def _is_curve(column: str) -> bool:
    return column in ("train_loss", "val_loss") or (column.startswith(("fid", "fd_")) and direction(column) != 0)


def _varies(table: Table, metric: str) -> bool:
    return len({row.metrics[metric][0] for row in table.rows if metric in row.metrics}) > 1


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(0.6 + 3.0 * count, 3.1))
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def _points(rows: Iterable[tuple[str, Row]], metric: str, x: Callable[[Row], float]) -> list[Point]:
    """The points of the rows (each with the name of its series) that can be drawn."""
    points = []
    for name, row in rows:
        mean, sd, _ = row.metrics.get(metric, (math.nan, math.nan, 0))
        if style.drawable(mean) and style.drawable(place := x(row)):
            points.append(Point(place, mean, sd if style.drawable(sd) else 0.0, name))
    return points


def _draw_means(axes: Axes, points: Sequence[Point], shift: float, i: int, line: str) -> ErrorbarContainer:
    x, mean, sd = ([p.x + shift for p in points], [p.mean for p in points], [p.sd for p in points])
    return axes.errorbar(x, mean, sd, fmt=style.MARKERS[i] + line, color=style.COLOURS[i], capsize=2.5, elinewidth=1)


def _draw_medians(axes: Axes, points: Sequence[Point], shift: float, i: int, line: str) -> Line2D:
    axes.plot(
        [p.x + shift for p in points], [p.mean for p in points], ".", color=style.COLOURS[i], alpha=0.35, markersize=4
    )
    x = sorted({p.x for p in points})
    middle = [median(p.mean for p in points if p.x == value) for value in x]
    (drawn,) = axes.plot([v + shift for v in x], middle, style.MARKERS[i] + line, color=style.COLOURS[i])
    return drawn


def _label_axes(axes: Axes, x: str, metric: str, means: Sequence[float]) -> None:
    arrow = {-1: " ↓", 0: "", 1: " ↑"}[direction(metric)]
    style.set_title(axes, f"{metric}{arrow}")
    axes.set_xlabel(style.fitting(x))
    if _spans(means, 30):
        style.log_axis(axes, "y")


def _tick_parameter(axes: Axes, places: Mapping[Value, float], numeric: bool) -> None:
    if not numeric:
        names = [style.fitting(setting_text(name)) for name in places]
        long = sum(map(len, names)) > 34
        axes.set_xticks(list(places.values()), names, rotation=35 if long else 0, ha="right" if long else "center")
        axes.set_xlim(-0.5, len(places) - 0.5)
        return
    values = sorted(places.values())
    if _spans(values, 8) and len(values) > 2:
        style.log_axis(axes, "x")
        axes.minorticks_off()
    if len(values) <= 8:
        axes.set_xticks(values, [f"{v:g}" for v in values])


def _spans(values: Sequence[float], ratio: float) -> bool:
    """Whether the values are positive and drawable, and their largest is at least `ratio` times their smallest."""
    return bool(values) and min(values) > 1 / style.LARGEST and max(values) >= ratio * min(values)


def _legend(figure: Figure, handles: Mapping[str, Artist | ErrorbarContainer], title: str | None = None) -> None:
    """A legend below the panels, unless it would name a single series. Series without a name get no entry."""
    handles = {name: handle for name, handle in handles.items() if name}
    if len(handles) < 2 and title is None:
        return
    longest = max((len(style.fitting(name)) for name in handles), default=0)  # 0: the title alone
    columns = max(1, min(len(handles), int(figure.get_figwidth() * 13 / (longest + 6))))
    legend = figure.legend(  # type: ignore[call-overload]  # the stubs leave out containers as handles
        list(handles.values()), list(map(style.fitting, handles)), loc="outside lower left", ncols=columns, title=title
    )
    legend.set_alignment("left")


def _colours(count: int) -> Sequence[ColorType]:
    """A colour per setting: distinct ones, or shades from first to last if there are too many."""
    if count <= len(style.COLOURS):
        return style.COLOURS
    import matplotlib

    return [tuple(colour) for colour in matplotlib.colormaps["viridis"]([0.9 * i / count for i in range(count)])]
