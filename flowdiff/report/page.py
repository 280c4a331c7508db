"""One HTML file with everything in it: the tables, the plots, sample grids and the configs to compare.

page.html, page.css and page.js lie beside this file and are written into the page, the data as JSON, pictures
as base64. The page loads nothing: its content security policy forbids it.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from flowdiff.report.table import (
    Table,
    cells,
    columns_shown,
    direction,
    number,
    problems,
    sentences,
    short,
    text,
)
from flowdiff.runs.collect import Run, is_housekeeping

if TYPE_CHECKING:
    from flowdiff.report import Report

HERE = Path(__file__).parent
PICTURE_BYTES = 4_000_000  # of sample grids in one page; the rest are linked to their files
PICTURE_SIZE = 384  # pixels, the longer side of an embedded grid
SMALL_FILE = 24_000  # bytes; a grid no larger than this is embedded as it is


def page(report: Report, plots: Sequence[tuple[str, str, bytes]], out: Path) -> str:
    """The page as text; `plots` are (slug, caption, PNG), `out` the folder it will lie in."""
    runs, table = report.runs, report.table
    row_of = {id(entry.run): i for i, row in enumerate(table.rows) for entry in row.entries}
    number_of = {id(run): i for i, run in enumerate(runs)}
    ranked = [row.entries for row in (table.rows[i] for i in table.ranked())]
    shown_first = [number_of[id(entries[0].run)] for entries in ranked]
    rest = [number_of[id(entry.run)] for entries in ranked for entry in entries[1:]]
    pictures = _pictures(runs, [*shown_first, *rest], out)
    data = {
        "views": {
            "settings": _settings(table, number_of),
            "runs": _runs(runs, table, row_of),
            "sampling": _settings(report.sampling, number_of) if report.sampling.rows else None,
        },
        "runs": [{"label": run.label, "caption": _caption(run, table, row_of)} for run in runs],
        "pictures": pictures,
        "chosen": [i for i in shown_first if i in pictures][:6],
        "compared": (shown_first + rest + list(range(len(runs))))[:2],
        "config": _configs(runs),
    }
    template = Template((HERE / "page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=html.escape(f"flowdiff report: {', '.join(Path(f).resolve().name for f in report.folders)}"),
        folders=html.escape(", ".join(report.folders)),
        made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        sentences="".join(f"<p>{html.escape(s)}</p>" for s in sentences(runs, table)),
        plots="".join(_plot(*plot) for plot in plots) or "<p class='muted'>Nothing to plot yet.</p>",
        problems=_problems(runs),
        css=(HERE / "page.css").read_text(encoding="utf-8"),
        js=(HERE / "page.js").read_text(encoding="utf-8"),
        # "<" never stands in the JSON, so no value can end the script element.
        data=json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
    )


def _column(title: str, numeric: bool, sign: int = 0) -> dict[str, Any]:
    return {"title": title, "numeric": numeric, "sign": sign}


def _settings(table: Table, number_of: dict[int, int]) -> dict[str, Any]:
    """A table as columns and rows; a cell is its text, or [text, number to sort by, 1 if best]."""
    metrics = columns_shown(table)
    columns = [_column(p, False) for p in table.parameters] + [_column("seeds", True)]
    columns += [_column(m, True, direction(m)) for m in metrics]
    bodies = [(metric, cells(table, metric), table.best(metric)) for metric in metrics]
    rows = []
    for i, row in enumerate(table.rows):
        line = [_value(row.settings[p]) for p in table.parameters] + [_value(row.seeds)]
        for metric, body, best in bodies:
            mean = row.metrics[metric][0] if metric in row.metrics else math.nan
            line.append([body[i], mean if math.isfinite(mean) else None, int(i in best)])
        rows.append({"cells": line, "runs": sorted({number_of[id(entry.run)] for entry in row.entries})})
    return {"columns": columns, "rows": rows}


def _runs(runs: Sequence[Run], table: Table, row_of: dict[int, int]) -> dict[str, Any]:
    """Every run, complete or not, with its own numbers."""
    metrics = columns_shown(table)
    columns = [_column("run", False), _column("state", False), *(_column(p, False) for p in table.parameters)]
    columns += [_column("seed", True), *(_column(m, True, direction(m)) for m in metrics)]
    rows = []
    for i, run in enumerate(runs):
        line = [
            run.label,
            run.state,
            *(_value(run.config.get(p, "")) for p in table.parameters),
            _value(run.seed),
        ]
        for metric in metrics:
            value = run.metrics.get(metric)
            finite = value is not None and math.isfinite(value)
            line.append(["" if value is None else number(value), value if finite else None, 0])
        rows.append({"cells": line, "runs": [i], "state": run.state})
    return {"columns": columns, "rows": rows}


def _value(value: Any) -> Any:
    return [text(value), value, 0] if isinstance(value, int | float) else text(value)


def _caption(run: Run, table: Table, row_of: dict[int, int]) -> str:
    """What stands below a run's samples: its settings, seed and first quality metric."""
    settings = [f"{short(p)}={text(v)}" for p in table.parameters if (v := run.config.get(p, "")) != ""]
    said = [*settings, f"seed={text(run.seed)}"]
    said += [f"{m} {number(run.metrics[m])}" for m in table.quality()[:1] if m in run.metrics]
    return " · ".join(said)


def _configs(runs: Sequence[Run]) -> dict[str, Any]:
    """The keys in which any two runs differ, and for every run the numbers of its values (0: absent)."""
    keys = list(dict.fromkeys(key for run in runs for key in run.config))
    keys = [key for key in keys if len({run.config.get(key) for run in runs}) > 1]
    values = {None: 0}
    rows = [[values.setdefault(_typed(run.config, key), len(values)) for key in keys] for run in runs]
    return {
        "keys": keys,
        "housekeeping": [int(is_housekeeping(key)) for key in keys],
        "values": ["", *(v for v in values if v is not None)],
        "rows": rows,
    }


def _typed(config: dict[str, Any], key: str) -> str | None:
    return text(config[key]) if key in config else None


def _pictures(runs: Sequence[Run], order: Sequence[int], out: Path) -> dict[int, str]:
    """samples.png of the runs, in order: embedded while they fit, then linked by relative path."""
    found: dict[int, str] = {}
    left = PICTURE_BYTES
    complete = set(order)
    for i in [*order, *(i for i in range(len(runs)) if i not in complete)]:
        file = runs[i].folder / "samples.png"
        if left > 0 and (picture := _picture(file)):
            found[i] = picture
            left -= len(picture)
        elif left <= 0 and file.is_file():
            found[i] = Path(os.path.relpath(file.resolve(), out.resolve())).as_posix()
    return found


def _picture(file: Path) -> str:
    """A sample grid as a data URI: as it is if small, else scaled down; empty if unreadable."""
    from PIL import Image, UnidentifiedImageError

    try:
        raw = file.read_bytes()
        with Image.open(io.BytesIO(raw)) as image:
            if len(raw) <= SMALL_FILE and image.format == "PNG":
                image.verify()
                return _data_uri(raw, "png")
            image.thumbnail((PICTURE_SIZE, PICTURE_SIZE))
            small = io.BytesIO()
            image.convert("RGB").save(small, "JPEG", quality=85)
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError):
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


def _problems(runs: Sequence[Run]) -> str:
    """The section on runs that are not complete; nothing if all are."""
    lines = "".join(
        f"<tr><td><span class='state {run.state}'>{run.state}</span></td>"
        f"<td>{html.escape(run.label)}</td><td>{html.escape(run.reason)}</td></tr>"
        for run in problems(runs)
    )
    if not lines:
        return ""
    head = "".join(f"<th scope='col'>{title}</th>" for title in ("state", "run", "reason"))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"
    return (
        f"<section id='incomplete'><h2>Not complete</h2><div class='scroll tall' tabindex='0'>{table}</div></section>"
    )
