"""The health of the scores of several runs: error of D, smallest eigenvalue and Fokker–Planck residual against σ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flowdiff.report.series import series
from flowdiff.report.style import COLOURS, GUIDE_COLOUR, drawable, fitting, set_title, styled
from flowdiff.report.table import Table
from flowdiff.runs.collect import health
from flowdiff.runs.health import Curve, Denoising

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CAPTION = (
    "Health of the scores against σ: mean squared error of D on test data, per dimension; smallest eigenvalue of ∂D/∂x "
    "on the sampler's trajectories; residual of the Fokker–Planck equation of densities. Grey lines need no network."
)


@styled
def health_curves(table: Table) -> Figure | None:
    """The curves of all complete runs, those of a series in one colour; None if no run has one.

    A line that needs no network is drawn if it is the same for all runs: they denoise the same data at the same levels.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    names, _ = series(table.rows, table.independent_parameters())
    measured = [
        (name or "others", found)  # a setting without any of the parameters that name the other series
        for name, row in zip(names, table.rows, strict=True)
        for entry in row.entries
        if not (found := health(entry.run)).is_empty
    ]
    if not measured:
        return None
    colour = dict(zip(dict.fromkeys(name for name, _ in measured), COLOURS, strict=False))
    errors = [(found.denoising, colour[name]) for name, found in measured if found.denoising is not None]
    eigenvalues = [(found.eigenvalues, colour[name]) for name, found in measured if found.eigenvalues is not None]
    residuals = [(found.fokker_planck, colour[name]) for name, found in measured if found.fokker_planck is not None]
    count = sum(map(bool, (errors, eigenvalues, residuals)))
    figure = Figure(figsize=(0.8 + 3.3 * count, 3.3))
    panels = iter(figure.subplots(1, count, squeeze=False)[0])
    alpha = max(0.15, min(0.9, 40 / len(measured)))
    named = colour if len(colour) > 1 else {}
    handles: dict[str, Artist] = {name: Line2D([], [], color=shade) for name, shade in named.items()}
    if errors:
        axes = next(panels)
        handles |= _guide_lines(axes, [found for found, _ in errors])
        _curves(axes, [(Curve(found.sigma, found.model), shade) for found, shade in errors], alpha)
        if any(value > 0 for line in axes.lines for value in line.get_ydata()):
            axes.set_yscale("log")
        _label(axes, "error of D ↓")
    if eigenvalues:
        axes = next(panels)
        _curves(axes, eigenvalues, alpha)
        axes.axhline(0, color=GUIDE_COLOUR, linewidth=1.1)
        axes.set_yscale("symlog", linthresh=1)
        _label(axes, "smallest eigenvalue of ∂D/∂x ↑")
    if residuals:
        axes = next(panels)
        _curves(axes, residuals, alpha)
        axes.set_ylim(bottom=0)
        _label(axes, "Fokker–Planck residual ↓")
    if handles:
        columns = max(1, int(figure.get_figwidth() * 13 / (max(map(len, handles)) + 6)))
        texts = list(map(fitting, handles))
        figure.legend(list(handles.values()), texts, loc="outside lower left", ncols=columns).set_alignment("left")
    return figure


def _guide_lines(axes: Axes, errors: Sequence[Denoising]) -> dict[str, Artist]:
    """Draw the errors of what needs no network, where they are the same for all; their handles for the legend."""
    handles: dict[str, Artist] = {}
    for guide in dict.fromkeys(guide for found in errors for guide in _guides(found)):
        lines = {_guides(found).get(guide) for found in errors}
        if len(lines) == 1 and (line := lines.pop()) is not None:
            name, style = guide
            (handles[name],) = axes.plot(*_drawable(line), style, color=GUIDE_COLOUR, linewidth=1.2, zorder=1)
    return handles


def _label(axes: Axes, title: str) -> None:
    """Title and x axis of a panel whose y axis is scaled; ticks as numbers, because the style draws no formulas."""
    set_title(axes, title)
    axes.set_xscale("log")
    axes.set_xlabel("σ")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")


def _guides(errors: Denoising) -> dict[tuple[str, str], Curve]:
    """{(name, line style): the error of a prediction that needs no network}."""
    flat = {
        ("variance of the data", ":"): errors.variance,
        ("class means" if errors.of_classes else "the data's mean", "--"): errors.means,
    }
    ends = errors.sigma[0], errors.sigma[-1]
    guides = {guide: Curve(ends, (value, value)) for guide, value in flat.items()}
    return guides | ({} if errors.wiener is None else {("Wiener filter", "-."): Curve(errors.sigma, errors.wiener)})


def _curves(axes: Axes, curves: Sequence[tuple[Curve, str]], alpha: float) -> None:
    for curve, shade in curves:
        axes.plot(*_drawable(curve), color=shade, alpha=alpha, marker="o", markersize=2.5)


def _drawable(curve: Curve) -> tuple[list[float], list[float]]:
    """σ and value where both can be drawn."""
    points = [(s, v) for s, v in zip(curve.sigma, curve.value, strict=True) if s > 0 and drawable(s) and drawable(v)]
    return [s for s, _ in points], [v for _, v in points]
