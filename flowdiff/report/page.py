"""One HTML file with the tables, the plots, sample grids, and the configs of any two runs side by side.

page.html, page.css and page.js lie beside this file and are written into the page, the data as JSON, pictures as
base64. The page loads nothing: its content security policy forbids it.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from string import Template
from typing import TypedDict
from urllib.parse import quote

from flowdiff.report.table import Table, direction
from flowdiff.report.text import incomplete_runs, metric_cells, number_text, report_notes, setting_text, short_key
from flowdiff.runs.collect import Run, Value, is_housekeeping

HERE = Path(__file__).parent
MAX_EMBEDDED_BYTES = 4_000_000  # of sample grids in one page; further grids are linked to their files
PICTURE_SIZE = 384  # pixels, the longer side of an embedded grid
SMALL_FILE = 24_000  # bytes; a smaller grid is embedded as it is

Cell = str | tuple[str, float | None, int]
"""A cell of a table in the page: its text, or (text, number to sort by, 1 if best)."""


class Column(TypedDict):
    """Head of a column in the page. sign: the `direction` of a metric, 0 for other columns."""

    title: str
    numeric: bool
    sign: int


class Line(TypedDict):
    """A row in the page. runs: numbers of the runs whose samples it shows."""

    cells: list[Cell]
    runs: list[int]
    state: str


class View(TypedDict):
    """A table in the page."""

    columns: list[Column]
    rows: list[Line]


def page(
    folders: Sequence[str],
    runs: Sequence[Run],
    table: Table,
    sampling: Table,
    plots: Sequence[tuple[str, str, bytes]],
    out: Path,
) -> str:
    """The page as text.

    Args:
        folders: the folders of the report, for the title.
        runs: all runs, complete or not.
        table: one row per setting.
        sampling: one row per way of sampling; its view is left out if there are none.
        plots: (slug, caption, PNG) of each plot.
        out: the folder that the page will be in; links to pictures are relative to it.
    """
    number_of = {id(run): i for i, run in enumerate(runs)}
    ranked = [table.rows[i].entries for i in table.ranked()]
    first_seeds = [number_of[id(entries[0].run)] for entries in ranked]
    other_seeds = [number_of[id(entry.run)] for entries in ranked for entry in entries[1:]]
    pictures = _pictures(runs, [*first_seeds, *other_seeds], out)
    data = {
        "views": {
            "settings": _settings_view(table, number_of),
            "runs": _runs_view(runs, table),
            "sampling": _settings_view(sampling, number_of) if sampling.rows else None,
        },
        "runs": [{"label": run.label, "caption": _caption(run, table)} for run in runs],
        "pictures": pictures,
        "chosen": [i for i in first_seeds if i in pictures][:6],
        "compared": (first_seeds + other_seeds + list(range(len(runs))))[:2],
        "config": _configs(runs),
    }
    template = Template((HERE / "page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=html.escape(f"flowdiff report: {', '.join(Path(folder).resolve().name for folder in folders)}"),
        folders=html.escape(", ".join(folders)),
        created=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        notes="".join(f"<p>{html.escape(note)}</p>" for note in report_notes(runs, table)),
        plots="".join(_plot(*plot) for plot in plots) or "<p class='muted'>Nothing to plot yet.</p>",
        incomplete=_incomplete_section(runs),
        css=(HERE / "page.css").read_text(encoding="utf-8"),
        js=(HERE / "page.js").read_text(encoding="utf-8"),
        # Without "<" in the JSON no value can end the script element.
        data=json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
    )


def _columns(names: Sequence[str], count: str, table: Table) -> list[Column]:
    """Heads of text columns, of a numeric one, and of the table's metrics."""
    columns = [Column(title=name, numeric=False, sign=0) for name in names]
    columns.append(Column(title=count, numeric=True, sign=0))
    return columns + [Column(title=m, numeric=True, sign=direction(m)) for m in table.shown_metrics()]


def _settings_view(table: Table, number_of: Mapping[int, int]) -> View:
    """One line per setting. number_of: id of a run to its number in the page."""
    bodies = [(metric, metric_cells(table, metric), table.best(metric)) for metric in table.shown_metrics()]
    lines = []
    for i, row in enumerate(table.rows):
        cells = [_cell(row.settings[p]) for p in table.parameters] + [_cell(row.seeds)]
        for metric, body, best in bodies:
            mean = row.metrics[metric][0] if metric in row.metrics else math.nan
            cells.append((body[i], mean if math.isfinite(mean) else None, int(i in best)))
        lines.append(Line(cells=cells, runs=sorted({number_of[id(entry.run)] for entry in row.entries}), state=""))
    return View(columns=_columns(table.parameters, "seeds", table), rows=lines)


def _runs_view(runs: Sequence[Run], table: Table) -> View:
    """One line per run, complete or not, with its own numbers."""
    lines = []
    for i, run in enumerate(runs):
        cells: list[Cell] = [run.label, run.state, *(_cell(run.config.get(p, "")) for p in table.parameters)]
        cells.append(_cell(run.seed))
        for metric in table.shown_metrics():
            value = run.metrics.get(metric)
            finite = value is not None and math.isfinite(value)
            cells.append(("" if value is None else number_text(value), value if finite else None, 0))
        lines.append(Line(cells=cells, runs=[i], state=run.state))
    return View(columns=_columns(["run", "state", *table.parameters], "seed", table), rows=lines)


def _cell(value: Value) -> Cell:
    return (setting_text(value), value, 0) if isinstance(value, int | float) else value


def _caption(run: Run, table: Table) -> str:
    """The text below a run's samples: its settings, seed and first quality metric."""
    parts = [f"{short_key(p)}={setting_text(v)}" for p in table.parameters if (v := run.config.get(p, "")) != ""]
    parts.append(f"seed={setting_text(run.seed)}")
    parts += [f"{m} {number_text(run.metrics[m])}" for m in table.quality()[:1] if m in run.metrics]
    return " · ".join(parts)


def _configs(runs: Sequence[Run]) -> dict[str, object]:
    """The keys in which any two runs differ, the distinct values, and the numbers of each run's values (0: not set)."""
    keys = list(dict.fromkeys(key for run in runs for key in run.config))
    keys = [key for key in keys if len({run.config.get(key) for run in runs}) > 1]
    numbers: dict[str | None, int] = {None: 0}
    texts = [[setting_text(run.config[key]) if key in run.config else None for key in keys] for run in runs]
    rows = [[numbers.setdefault(text, len(numbers)) for text in line] for line in texts]
    housekeeping = [int(is_housekeeping(key)) for key in keys]
    return {"keys": keys, "housekeeping": housekeeping, "values": [text or "" for text in numbers], "rows": rows}


def _pictures(runs: Sequence[Run], order: Sequence[int], out: Path) -> dict[int, str]:
    """samples.png of the runs in `order`, then of the others: embedded while they fit, then linked by relative path."""
    found: dict[int, str] = {}
    left = MAX_EMBEDDED_BYTES
    for i in dict.fromkeys([*order, *range(len(runs))]):
        file = runs[i].folder / "samples.png"
        if left > 0 and (picture := _picture(file)):
            found[i] = picture
            left -= len(picture)
        elif left <= 0 and file.is_file():
            found[i] = quote(Path(os.path.relpath(file.resolve(), out.resolve())).as_posix())
    return found


def _picture(file: Path) -> str:
    """A sample grid as a data URI: unchanged if small, else scaled down; empty if it cannot be read."""
    from PIL import Image

    if not file.is_file():
        return ""
    try:
        raw = file.read_bytes()
        with Image.open(io.BytesIO(raw)) as image:
            if len(raw) <= SMALL_FILE and image.format == "PNG":
                image.verify()
                return _data_uri(raw, "png")
            image.thumbnail((PICTURE_SIZE, PICTURE_SIZE))
            small = io.BytesIO()
            image.convert("RGB").save(small, "JPEG", quality=85)
    except Exception:  # Pillow's decoders raise errors of many types for a damaged file
        return ""
    return _data_uri(small.getvalue(), "jpeg")


def _data_uri(raw: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(raw).decode()}"


def _plot(slug: str, caption: str, png: bytes) -> str:
    caption = html.escape(caption)
    wide, tall = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))  # from the PNG's header
    size = f"width='{wide * 5 // 6}' height='{tall * 5 // 6}'"
    image = f"<img src='{_data_uri(png, 'png')}' alt='{caption}' {size} loading='lazy' decoding='async'>"
    return f"<figure id='plot-{html.escape(slug)}'>{image}<figcaption>{caption}</figcaption></figure>"


def _incomplete_section(runs: Sequence[Run]) -> str:
    """The section on runs that are not complete; empty if all are."""
    lines = "".join(
        f"<tr><td><span class='state {run.state}'>{run.state}</span></td>"
        f"<td>{html.escape(run.label)}</td><td>{html.escape(run.reason)}</td></tr>"
        for run in incomplete_runs(runs)
    )
    if not lines:
        return ""
    head = "".join(f"<th scope='col'>{title}</th>" for title in ("state", "run", "reason"))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"
    table = f"<div class='scroll tall' tabindex='0'>{table}</div>"
    return f"<section id='incomplete'><h2>Incomplete runs</h2>{table}</section>"
