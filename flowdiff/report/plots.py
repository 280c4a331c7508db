"""Figures of a set of runs: Matplotlib `Figure`s, drawn without pyplot and without a display.

A point is the mean over the seeds of a setting, its bar one standard deviation. The Pareto front of (cost,
metric) holds the settings that no other one beats in both.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import wraps
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from flowdiff.report.table import SAMPLING, Row, Table, direction, follows, groups, short, text
from flowdiff.runs.collect import MEASURED, Run, curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
MARKERS = "osD^vPX*"
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a9099",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e6ea",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "figure.constrained_layout.use": True,
}
PANELS = 3  # metrics per figure
CURVE_POINTS = 400  # what a plot of this width can show


class Plot(NamedTuple):
    """A figure with the name of its file and the sentence below it."""

    slug: str
    caption: str
    figure: Figure


class Point(NamedTuple):
    """Where a row stands on the x axis, mean and sd of a metric there, and the name of its series."""

    x: float
    mean: float
    sd: float
    series: str


def plots(runs: Sequence[Run], table: Table, sampling: Table) -> Iterator[Plot]:
    """Every plot that the runs have data for, one at a time."""
    from flowdiff.report.tradeoff import traded, tradeoff  # which draws in this module's style

    metrics = [m for m in table.quality() if m not in MEASURED.values()][:PANELS]
    for parameter in table.questions() if metrics else ():
        caption = f"Against {parameter}: mean ± sd over seeds."
        slug = re.sub(r"[^\w.-]", "_", parameter)
        yield Plot(f"by_{slug}", caption, by_parameter(table, parameter, metrics))
    judged = [m for m in sampling.quality() if m != "seconds" and "per_second" not in m][:PANELS]
    for parameter, slug in (("num_steps", "sampling_steps"), ("guidance_scale", "guidance_scale")):
        if judged and len({row.settings.get(parameter, "") for row in sampling.rows} - {""}) > 1:
            caption = f"Quality against {slug.replace('_', ' ')}, from evaluations.csv."
            yield Plot(f"by_{slug}", caption, by_parameter(sampling, parameter, judged))
    if (metric := traded(sampling)) is not None:
        caption = "What guidance trades: the numbers are its scale, dotted is what real samples reach."
        yield Plot("guidance_tradeoff", caption, tradeoff(sampling, metric))
    if judged and len({row.metrics["nfe"][0] for row in sampling.rows if "nfe" in row.metrics}) > 1:
        caption = "Sampling against network calls per sample (nfe); dashed is the Pareto front."
        yield Plot("against_nfe", caption, pareto(sampling, "nfe", judged))
    quality = [m for m in metrics if "per_second" not in m]
    for cost, what in (("parameters", "number of parameters"), ("train_seconds", "seconds of training")):
        if quality and len({row.metrics[cost][0] for row in table.rows if cost in row.metrics}) > 1:
            caption = f"Against the {what}; dashed is the Pareto front: the settings that no other beats in both."
            yield Plot(f"against_{cost}", caption, pareto(table, cost, quality))
    if (figure := training_curves(runs, table)) is not None:
        yield Plot("curves", "Training curves of all runs, dashed where a run is not complete.", figure)


def styled(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Draw in the report's style."""

    @wraps(draw)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        import matplotlib

        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapped


@styled
def png(figure: Figure, dpi: int = 130) -> bytes:
    """The figure as a small PNG: flat colours need no more than a palette."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba(), "raw", "RGBA", 0, 1)
    file = io.BytesIO()
    image.convert("RGB").quantize(128).save(file, "PNG", optimize=True)
    return file.getvalue()


@styled
def by_parameter(table: Table, parameter: str, metrics: Sequence[str]) -> Figure:
    """Each metric against one parameter: lines where it is a number, dots where it is a name.

    The other parameters make the series. Where these are too many to tell apart, a series gathers several
    settings: each is a small dot, and the line or large dot is their median.
    """
    rows = [row for row in table.rows if row.settings[parameter] != ""]
    others = [p for p in table.questions() if p != parameter and not follows(rows, p, parameter)]
    names, gathered = series(rows, others)
    legend = list(dict.fromkeys(names))
    values = list(dict.fromkeys(row.settings[parameter] for row in rows))
    numeric = all(isinstance(value, int | float) for value in values)
    places = {value: value if numeric else i for i, value in enumerate(values)}
    figure, panels = _panels(len(metrics))
    handles = {}
    for axes, metric in zip(panels, metrics, strict=True):
        points = _points(zip(names, rows, strict=True), metric, lambda row: places[row.settings[parameter]])
        for i, name in enumerate(legend):
            mine = sorted(point for point in points if point.series == name)
            shift = 0 if numeric else 0.12 * (i - (len(legend) - 1) / 2)
            draw = _draw_medians if gathered else _draw_means
            handles[name] = draw(axes, mine, shift, i, "-" if numeric else "")
        _tick_parameter(axes, places, numeric)
        _label_axes(axes, short(parameter), metric, [point.mean for point in points])
    _legend(figure, handles, f"median over {', '.join(map(short, gathered))}" if gathered else None)
    return figure


@styled
def pareto(table: Table, cost: str, metrics: Sequence[str]) -> Figure:
    """Each metric against a cost, coloured by setting, with the Pareto front (less cost, better metric)."""
    rows = [row for row in table.rows if cost in row.metrics]
    names, _ = series(rows, table.questions())
    names = [name or "others" for name in names]  # those that have nothing of what tells the rest apart
    legend = list(dict.fromkeys(names))
    figure, panels = _panels(len(metrics))
    handles = {}
    for axes, metric in zip(panels, metrics, strict=True):
        points = _points(zip(names, rows, strict=True), metric, lambda row: row.metrics[cost][0])
        for i, name in enumerate(legend):
            handles[name] = _draw_means(axes, [point for point in points if point.series == name], 0, i, "")
        if front := pareto_front([(point.x, point.mean) for point in points], direction(metric)):
            axes.step(
                *zip(*front, strict=True),
                where="post",
                color="#5f6670",
                linewidth=1.1,
                linestyle="--",
                zorder=1,
            )
        if _spans([point.x for point in points], 8):
            _log_axis(axes, "x")
        _label_axes(axes, cost, metric, [point.mean for point in points])
    _legend(figure, handles)
    return figure


def series(rows: Sequence[Row], parameters: Sequence[str]) -> tuple[list[str], list[str]]:
    """Which series each row belongs to, by as many parameters as make series that can be told apart.

    Returns the name of each row's series and the parameters that had to be left out of the names.
    """
    varying = [p for p in parameters if len({row.settings[p] for row in rows}) > 1]
    typed = {o.lstrip("+~").partition("=")[0] for row in rows for entry in row.entries for o in entry.run.overrides}
    brought = {p for p in varying if p not in typed and p.removesuffix(".name") not in typed}
    # How was sampled comes first, the sampler before all, then what was asked for, then what has the fewest values.
    varying.sort(key=lambda p: ((*SAMPLING, p).index(p), p in brought, groups(rows, [p])))
    used: list[str] = []
    for parameter in varying:
        if groups(rows, used) < groups(rows, [*used, parameter]) <= len(COLOURS):
            used.append(parameter)
    named = [p for p in parameters if p in used]
    names = [", ".join(f"{short(p)}={text(v)}" for p in named if (v := row.settings[p]) != "") for row in rows]
    return names, [p for p in varying if groups(rows, used) < groups(rows, [*used, p])]


def pareto_front(points: Sequence[tuple[float, float]], sign: int) -> list[tuple[float, float]]:
    """The (cost, metric) points that no other beats: costs rising, metrics ever better.

    sign: −1 where a lower metric is better, +1 where a higher one is.
    """
    front: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -sign * point[1])):
        if not front or sign * value > sign * front[-1][1]:
            front.append((cost, value))
    return front


@styled
def training_curves(runs: Sequence[Run], table: Table) -> Figure | None:
    """Losses and intermediate quality against the step, the seeds of a setting in one colour."""
    from matplotlib.collections import LineCollection
    from matplotlib.lines import Line2D

    logged = [(run, found) for run in runs if (found := curves(run, _is_curve))]
    # One point makes no line.
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
            _log_axis(axes, "y")
        axes.set_xlabel("step")
        axes.set_title(name, loc="left", fontsize=9, fontweight="bold")
    if 1 < len(table.rows) <= len(COLOURS):
        _legend(figure, {row.title: Line2D([], [], color=colours[i]) for i, row in enumerate(table.rows)})
    return figure


def _is_curve(column: str) -> bool:
    return column in ("train_loss", "val_loss") or (column.startswith(("fid", "fd_")) and direction(column) != 0)


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(0.6 + 3.0 * count, 3.1))
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def _points(rows: Iterable[tuple[str, Row]], metric: str, x: Callable[[Row], float]) -> list[Point]:
    points = []
    for name, row in rows:
        mean, sd, _ = row.metrics.get(metric, (math.nan, math.nan, 0))
        if math.isfinite(mean):
            points.append(Point(x(row), mean, sd if math.isfinite(sd) else 0.0, name))
    return points


def _draw_means(axes: Axes, points: Sequence[Point], shift: float, i: int, line: str) -> Any:
    x, mean, sd = ([p.x + shift for p in points], [p.mean for p in points], [p.sd for p in points])
    return axes.errorbar(x, mean, sd, fmt=MARKERS[i] + line, color=COLOURS[i], capsize=2.5, elinewidth=1)


def _draw_medians(axes: Axes, points: Sequence[Point], shift: float, i: int, line: str) -> Any:
    axes.plot(
        [p.x + shift for p in points],
        [p.mean for p in points],
        ".",
        color=COLOURS[i],
        alpha=0.35,
        markersize=4,
    )
    x = sorted({p.x for p in points})
    middle = [median(p.mean for p in points if p.x == value) for value in x]
    (drawn,) = axes.plot([v + shift for v in x], middle, MARKERS[i] + line, color=COLOURS[i])
    return drawn


def _label_axes(axes: Axes, x: str, metric: str, means: Sequence[float]) -> None:
    arrow = {-1: " ↓", 0: "", 1: " ↑"}[direction(metric)]
    axes.set_title(f"{metric}{arrow}", loc="left", fontsize=9, fontweight="bold")
    axes.set_xlabel(x)
    if _spans(means, 30):
        _log_axis(axes, "y")


def _tick_parameter(axes: Axes, places: dict[Any, float], numeric: bool) -> None:
    if not numeric:
        names = [text(name) for name in places]
        long = sum(map(len, names)) > 34
        axes.set_xticks(list(places.values()), names, rotation=35 if long else 0, ha="right" if long else "center")
        axes.set_xlim(-0.5, len(places) - 0.5)
        return
    values = sorted(places.values())
    if _spans(values, 8) and len(values) > 2:
        _log_axis(axes, "x")
        axes.minorticks_off()
    if len(values) <= 8:
        axes.set_xticks(values, [f"{v:g}" for v in values])


def _log_axis(axes: Axes, which: str) -> None:
    """A logarithmic axis labelled 0.5, 1, 2, 5, 10 … 20k, also where it spans less than a decade."""
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axis.get_view_interval()
    thousands = EngFormatter(sep="")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1e3 * low else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}" if 1e-3 <= v < 1e3 else thousands(v)))
    axis.set_minor_formatter(NullFormatter())


def _spans(values: Sequence[float], ratio: float) -> bool:
    """Whether values are positive and so far apart that a logarithmic axis shows them better."""
    return bool(values) and min(values) > 0 and max(values) >= ratio * min(values)


def _legend(figure: Figure, handles: dict[str, Any], title: str | None = None) -> None:
    handles = {name: handle for name, handle in handles.items() if name}  # nothing sets those without a name apart
    if len(handles) < 2 and title is None:
        return
    longest = max(map(len, handles))
    columns = max(1, min(len(handles), int(figure.get_figwidth() * 13 / (longest + 6))))
    legend = figure.legend(handles.values(), handles.keys(), loc="outside lower left", ncols=columns, title=title)
    legend.set_alignment("left")


def _colours(count: int) -> Sequence[Any]:
    """A colour per setting: distinct ones, or shades from first to last where there are too many for that."""
    if count <= len(COLOURS):
        return COLOURS
    import matplotlib

    return matplotlib.colormaps["viridis"]([0.9 * i / count for i in range(count)])
