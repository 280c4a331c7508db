"""Tables as text: settings and numbers, the notes beside a table, and a table for the terminal, CSV and Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flowdiff.report.divergence import MARK, distances
from flowdiff.report.table import Row, Table, count_groups, direction, is_decided_by
from flowdiff.runs.collect import Run, Value, damage_note, missing_keys_note

if TYPE_CHECKING:
    from rich.console import JustifyMethod
    from rich.table import Table as RichTable


def setting_text(value: Value) -> str:
    """A setting as a user would type it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def number_text(value: float) -> str:
    """Four significant digits; whole numbers in full, in groups of three."""
    if math.isfinite(value) and value == int(value) and abs(value) < 1e12:
        return f"{int(value):,}"
    return f"{value:.4g}"


def mean_text(mean: float, sd: float, n: int, seeds: int) -> str:
    """mean ± sd, both with the decimals that give the sd two digits; n is shown if it is not `seeds`."""
    if math.isfinite(sd) and sd > 0 and math.isfinite(mean):
        if 1e-4 <= sd < 1e6:
            decimals = max(0, 1 - math.floor(math.log10(sd)))
            shown = f"{mean:,.{decimals}f} ± {sd:,.{decimals}f}"
        else:
            shown = f"{mean:.4g} ± {sd:.2g}"
    else:
        shown = number_text(mean) + (" ± 0" if sd == 0 else "")
    return shown if n == seeds else f"{shown} (n={n})"


def short_key(key: str) -> str:
    """flow.n_flows → n_flows, network.name → network."""
    parts = key.split(".")
    return parts[-2] if parts[-1] == "name" and len(parts) > 1 else parts[-1]


def row_title(row: Row) -> str:
    """The settings of a row in short: n_flows=3, activation=elu."""
    values = ((short_key(key), value) for key, value in row.settings.items())
    return ", ".join(f"{key}={setting_text(value)}" for key, value in values if value != "") or "all runs"


def metric_cells(table: Table, metric: str) -> list[str]:
    """A metric's column as text, empty where a row lacks the metric."""
    column = [mean_text(*row.metrics[metric], row.seeds) if metric in row.metrics else "" for row in table.rows]
    if distances(metric):
        rise = [any(entry.rising for entry in row.entries) for row in table.rows]
        column = [f"{cell} {MARK}" if cell and rose else cell for cell, rose in zip(column, rise, strict=True)]
    # Descriptive numbers, such as the parameter count, are not expected to vary over seeds.
    return column if direction(metric) else [cell.removesuffix(" ± 0") for cell in column]


# ------------------------------------------------------------------------------------------------------- notes


def report_notes(runs: Sequence[Run], table: Table) -> list[str]:
    """The sentences that a reader needs beside the table."""
    counts = {state: sum(run.state == state for run in runs) for state in dict.fromkeys(r.state for r in runs)}
    states = ", ".join(f"{n} {state}" for state, n in counts.items())
    notes = [f"{len(runs)} run{'s' * (len(runs) != 1)}: {states}."]
    notes += column_notes(table)
    if table.superseded:
        labels = ", ".join(entry.run.label for entry in table.superseded)
        notes.append(f"Left out of the means, because a later run has the same settings and seed: {labels}.")
    rose = [f"{entry.run.label} ({entry.rising})" for row in table.rows for entry in row.entries if entry.rising]
    if rose:
        notes.append(
            f"{MARK} The training loss falls while the distance of the samples rises, so that a smaller loss does not "
            f"mean better samples: {'; '.join(rose)}."
        )
    return notes + [note for note in (missing_keys_note(runs), damage_note(runs)) if note]


def column_notes(table: Table) -> list[str]:
    """Sentences on what has no column: parameters that a name decides, and whatever is the same in every row."""
    shown = table.independent_parameters()
    same = {p: setting_text(table.rows[0].settings[p]) for p in table.parameters if count_groups(table.rows, [p]) == 1}
    decided: dict[str, list[str]] = {}
    for q in (p for p in table.parameters if p not in shown and p not in same):
        name = next(p for p in shown if is_decided_by(table.rows, q, p))
        pairs = ((row.settings[name], row.settings[q]) for row in table.rows if row.settings[q] != "")
        values = dict.fromkeys(f"{deciding} {setting_text(value)}" for deciding, value in pairs)
        decided.setdefault(name, []).append(f"{q} ({', '.join(values)})")
    notes = [f"Decided by {name}: {', '.join(parts)}." for name, parts in decided.items()]
    same = {p: value for p, value in same.items() if p not in shown and value}
    same |= {metric: number_text(value) for metric, value in table.constant_metrics().items()}
    if same:
        notes.append(f"The same in every row: {', '.join(f'{k} {v}' for k, v in same.items())}.")
    return notes


def incomplete_runs(runs: Sequence[Run]) -> list[Run]:
    """The runs that are not complete, failed ones first."""
    return sorted((r for r in runs if r.state != "complete"), key=lambda r: (r.state, r.label))


# ------------------------------------------------------------------------------------ terminal, CSV, Markdown


def to_rich(table: Table, title: str, width: int, most: int = 100) -> RichTable:
    """A table for the terminal: as many columns as fit into the width, and the best `most` rows."""
    from rich.table import Table as RichTable
    from rich.text import Text

    rows = sorted(table.ranked()[:most])
    parameters = table.independent_parameters()
    columns: list[tuple[str, list[Text], JustifyMethod]] = [
        (p, [Text(setting_text(table.rows[i].settings[p])) for i in rows], "left") for p in parameters
    ]
    columns.append(("seeds", [Text(str(table.rows[i].seeds)) for i in rows], "right"))
    for metric in table.shown_metrics():
        column, best = metric_cells(table, metric), table.best(metric)
        styled = [Text(column[i], style="bold green" if i in best else "") for i in rows]
        columns.append((metric, styled, "right"))
    widths = [max(len(head), *map(len, column)) + 3 for head, column, _ in columns]
    fitting = min(len(parameters) + 2, len(columns))
    while fitting < len(columns) and sum(widths[: fitting + 1]) < width:
        fitting += 1

    notes = []
    if left := len(table.rows) - len(rows):
        notes.append(f"{left:,} more rows")
    if left := len(columns) - fitting:
        notes.append(f"{left} more column{'s' * (left > 1)} ({', '.join(head for head, *_ in columns[fitting:])})")
    caption = Text(f"… and {' and '.join(notes)} in the files.", style="table.caption") if notes else None
    shown = RichTable(title=title, caption=caption, title_justify="left", caption_justify="left")
    for head, _, justify in columns[:fitting]:
        shown.add_column(Text(head), justify=justify, overflow="fold")
    for values in zip(*(column for _, column, _ in columns[:fitting]), strict=True):
        shown.add_row(*values)
    return shown


def to_csv(table: Table) -> str:
    """A CSV of parameters, seeds, and the `.mean`, `.sd` and `.n` of every metric, in full precision."""
    import pandas as pd

    missing = (math.nan, math.nan, 0)
    parts = [
        (f"{metric}.{part}", metric, at) for metric in table.metrics for at, part in enumerate(("mean", "sd", "n"))
    ]
    records = [
        [*(row.settings[p] for p in table.parameters), row.seeds]
        + [row.metrics.get(metric, missing)[at] for _, metric, at in parts]
        for row in table.rows
    ]
    head = [*table.parameters, "seeds", *(name for name, *_ in parts)]
    csv: str = pd.DataFrame(records, columns=head).to_csv(index=False)
    return csv


def to_markdown(table: Table) -> str:
    """A Markdown table, best values in bold."""
    shown = table.shown_metrics()
    parameters = table.independent_parameters()
    head = [*map(escaped, parameters), "seeds", *map(escaped, shown)]
    lines = [head, ["---"] * len(parameters) + ["---:"] * (1 + len(shown))]
    columns = []
    for metric in shown:
        best = table.best(metric)
        columns.append([f"**{cell}**" if i in best else cell for i, cell in enumerate(metric_cells(table, metric))])
    for i, row in enumerate(table.rows):
        settings = [escaped(setting_text(row.settings[p])) for p in parameters]
        lines.append([*settings, str(row.seeds), *(column[i] for column in columns)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def incomplete_runs_markdown(runs: Sequence[Run]) -> str:
    """Failed and unfinished runs with their reason, as a list."""
    return "".join(
        f"- `{' '.join(run.label.splitlines()).replace('`', '')}` {run.state}: {escaped(run.reason)}\n"
        for run in incomplete_runs(runs)
    )


def escaped(text: str) -> str:
    """A text inside Markdown: on one line, without HTML, and with bars that end no cell of a table."""
    return " ".join(text.splitlines()).replace("<", "&lt;").replace("|", "\\|")
