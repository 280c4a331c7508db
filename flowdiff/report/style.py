"""The drawing style that all figures of a report share, and figures as PNG files.

Figures are Matplotlib `Figure`s, drawn without pyplot and without a display.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from flowdiff.runs.records import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
MARKERS = "osD^vPX*"
GUIDE_COLOUR = "#5f6670"  # of Pareto fronts and floors
LARGEST = 1e100  # an axis multiplies its limits with each other
STYLE: dict[Any, Any] = {  # newer Matplotlib types the keys, older takes any text
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
    "text.parse_math": False,  # names of runs and settings may hold dollars
}

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def styled(draw: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Decorate a function so that it draws in the report's style."""

    @wraps(draw)
    def wrapped(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        import matplotlib

        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapped


def drawable(value: float) -> bool:
    """Whether a number can be drawn beside others: it is finite, and no axis overflows."""
    return abs(value) <= LARGEST


def fitting(text: str) -> str:
    """A text that leaves room for the rest of a figure: on one line and not too long."""
    return one_line(text, limit=80)


def set_title(axes: Axes, title: str) -> None:
    """Write a panel's title at its upper left."""
    axes.set_title(fitting(title), loc="left", fontsize=9, fontweight="bold")


def log_axis(axes: Axes, which: str) -> None:
    """Make an axis logarithmic, labelled 0.5, 1, 2, 5, 10 … 20k, even if it spans less than a decade."""
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axis.get_view_interval()
    thousands = EngFormatter(sep="")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1e3 * low else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}" if 1e-3 <= v < 1e3 else thousands(v)))
    axis.set_minor_formatter(NullFormatter())


@styled
def png(figure: Figure, dpi: int = 130) -> bytes:
    """Render a figure as a small PNG: flat colours need no more than a palette."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba(), "raw", "RGBA", 0, 1)
    file = io.BytesIO()
    image.convert("RGB").quantize(128).save(file, "PNG", optimize=True)
    return file.getvalue()
