"""Runs to a table: one row per setting, each metric as mean ± sd over its seeds.

mean = Σ mᵢ/n, sd² = Σ (mᵢ − mean)²/(n − 1) over the n seeds of a setting; with one seed there is no sd. A
metric's best mean is bold: the lowest, except where more is better; what merely describes a run has no best.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowdiff.runs.collect import Run, evaluations, older, plain, swept_parameters

MORE_IS_BETTER = re.compile(
    r"accuracy|auroc|precision|recall|per_second|speed|coverage|density|log_prob|likelihood|^is(_|$)"
)
DESCRIBES = re.compile(
    r"^(parameters|steps|epochs?|seed|num_(samples|test|classified)|latent_dims|active_units|kl|nfe|extractor_accuracy|train_distance)$|^interpolation_|_(floor|sd|se|n)$"
)
# What accompanies another metric and varies from seed to seed as noise does: in the CSV only.
ASIDE = re.compile(r"^total_seconds$|_(sd|se)$")
QUALITY = ("fid", "fd_", "kid", "bpd", "test_loss", "val_loss")

# The columns of evaluations.csv that say how was sampled, and the beginnings of those that say it in more detail; every
# other number in it is a measurement.
SAMPLING = (
    *("sampler", "num_steps", "schedule", "guidance", "guidance_scale"),
    *("start", "sigma_start", "class_label", "num_samples"),
)
DETAILS = ("sampler_", "schedule_", "guidance_")


def direction(metric: str) -> int:
    """-1 where lower is better, +1 where higher is, 0 where the number only describes the run."""
    if DESCRIBES.search(metric):
        return 0
    return 1 if MORE_IS_BETTER.search(metric) else -1


@dataclass(frozen=True)
class Entry:
    """One measurement: under which settings, with which seed, what came out, and which run it belongs to."""

    settings: Mapping[str, Any]
    seed: Any
    metrics: Mapping[str, float]
    run: Run


@dataclass(frozen=True)
class Row:
    """One setting: its values, the entries of its seeds, and per metric (mean, sd or nan, n)."""

    settings: dict[str, Any]
    entries: list[Entry]
    metrics: dict[str, tuple[float, float, int]]

    @property
    def seeds(self) -> int:
        return len(self.entries)

    @property
    def title(self) -> str:
        """The settings in short: n_flows=3, activation=elu."""
        values = ((short(key), value) for key, value in self.settings.items())
        return ", ".join(f"{key}={text(value)}" for key, value in values if value != "") or "all runs"


@dataclass(frozen=True)
class Table:
    """Settings as rows; `parameters` and `metrics` are the columns, in order."""

    parameters: list[str]
    metrics: list[str]
    rows: list[Row]
    repeats: list[Entry] = field(default_factory=list)

    def questions(self) -> list[str]:
        """The parameters, less those with one value and those that follow from another one's name."""
        asked: list[str] = []
        varying = (p for p in self.parameters if len(self.rows) < 2 or groups(self.rows, [p]) > 1)
        for q in sorted(varying, key=lambda p: not is_name(p)):
            deciding = (p for p in self.parameters if follows(self.rows, q, p))
            if not any(p in asked or not follows(self.rows, p, q) for p in deciding):
                asked.append(q)
        return [parameter for parameter in self.parameters if parameter in asked]

    def best(self, metric: str) -> set[int]:
        """The rows with the best mean of a metric; none where nothing is to be compared."""
        sign = direction(metric)
        means = {i: row.metrics[metric][0] for i, row in enumerate(self.rows) if metric in row.metrics}
        means = {i: mean for i, mean in means.items() if math.isfinite(mean)}
        if not sign or len(set(means.values())) < 2:
            return set()
        top = max(means.values(), key=lambda mean: sign * mean)
        return {i for i, mean in means.items() if mean == top}

    def quality(self) -> list[str]:
        """The metrics that have a best, those that judge samples and likelihood first."""

        def rank(metric: str) -> int:
            return next((i for i, start in enumerate(QUALITY) if metric.startswith(start)), len(QUALITY))

        return sorted((m for m in self.metrics if direction(m)), key=rank)

    def constant(self) -> dict[str, float]:
        """What only describes the runs and is the same in all rows: said in a sentence, not a column."""
        if len(self.rows) < 2:
            return {}
        values = {m: {row.metrics.get(m, (math.nan,))[0] for row in self.rows} for m in self.metrics}
        return {m: v.pop() for m, v in values.items() if not direction(m) and len(v) == 1}

    def ranked(self) -> list[int]:
        """Row numbers, best first by the first quality metric; rows that lack it come last."""
        quality = self.quality()
        if not quality:
            return list(range(len(self.rows)))
        metric, sign = quality[0], direction(quality[0])

        def key(i: int) -> float:
            mean = self.rows[i].metrics.get(metric, (math.nan,))[0]
            return -sign * mean if math.isfinite(mean) else math.inf

        return sorted(range(len(self.rows)), key=key)


def groups(rows: Sequence[Row], parameters: Sequence[str]) -> int:
    """How many groups of rows these parameters tell apart."""
    return len({tuple(row.settings[p] for p in parameters) for row in rows})


def is_name(parameter: str) -> bool:
    """Whether its values are names of components."""
    return parameter.endswith(".name") or parameter in ("sampler", "schedule", "guidance")


def follows(rows: Sequence[Row], q: str, p: str) -> bool:
    """Whether p is a name that decides q, as the loss decides the weighting and a case of a sweep its steps."""
    if len(rows) < 2 or p == q or not is_name(p):
        return False
    return groups(rows, [p, q]) == groups(rows, [p])


def run_table(runs: Sequence[Run]) -> Table:
    """The complete runs, one row per setting of the swept parameters."""
    parameters = swept_parameters(runs)
    complete = sorted((run for run in runs if run.state == "complete"), key=lambda run: run.finished)
    entries = [Entry({p: run.config.get(p, "") for p in parameters}, run.seed, run.metrics, run) for run in complete]
    return tabulate(entries, parameters)


def sampling_table(runs: Sequence[Run]) -> Table:
    """The rows of all evaluations.csv, one row per setting of the swept parameters and of the sampling."""
    parameters = swept_parameters(runs)
    rows = [(run, row) for run in runs for row in evaluations(run)]
    found = [c for c in dict.fromkeys(c for _, row in rows for c in row) if c.startswith(DETAILS) and c not in SAMPLING]
    given = {column: {plain(row.get(column, "")) for _, row in rows} for column in (*SAMPLING, *found)}
    columns = [c for c in SAMPLING if len(given[c]) > 1 or (c in ("sampler", "num_steps") and given[c] - {""})]
    # That a setting is not there says only that another component was taken, or that an older version wrote the row.
    columns += [c for c in found if len(given[c] - {""}) > 1]
    entries = []
    for run, row in rows:
        settings = {p: run.config.get(p, "") for p in parameters} | {c: plain(row.get(c, "")) for c in columns}
        settings_of = {"seed", *SAMPLING, *found}
        metrics = {k: v for k, v in row.items() if k not in settings_of and isinstance(v, int | float)}
        entries.append(Entry(settings, (run.seed, row.get("seed", "")), metrics, run))
    return tabulate(entries, [*parameters, *columns])


def tabulate(entries: Iterable[Entry], parameters: Sequence[str]) -> Table:
    """Group entries of equal settings into rows; of two with the same seed the later one counts."""
    import numpy as np
    import pandas as pd

    groups: dict[tuple, dict[Any, Entry]] = {}
    repeats = []
    for entry in entries:
        group = groups.setdefault(tuple(entry.settings[p] for p in parameters), {})
        if entry.seed in group:
            repeats.append(group.pop(entry.seed))
        group[entry.seed] = entry
    order = sorted(groups, key=lambda values: [_natural(v) for v in values])

    flat = [(i, entry.metrics) for i, key in enumerate(order) for entry in groups[key].values()]
    frame = pd.DataFrame([metrics for _, metrics in flat], index=[i for i, _ in flat], dtype=float)
    by_row = frame.groupby(level=0)
    with np.errstate(invalid="ignore"):  # a diverged run's inf has no sd
        means, sds, counts = (getattr(by_row, how)().to_dict("index") for how in ("mean", "std", "count"))
    rows = []
    for i, key in enumerate(order):
        of = ((m, means[i][m], sds[i][m], counts[i][m]) for m in frame.columns)
        metrics = {m: (mean, sd, int(n)) for m, mean, sd, n in of if n}
        rows.append(Row(dict(zip(parameters, key, strict=True)), list(groups[key].values()), metrics))
    return Table(list(parameters), list(frame.columns), rows, repeats)


# ---------------------------------------------------------------------------------------- numbers as text


def text(value: Any) -> str:
    """A setting as one would type it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def number(value: float) -> str:
    """Four significant digits; whole numbers in full, in groups of three."""
    if math.isfinite(value) and value == int(value) and abs(value) < 1e12:
        return f"{int(value):,}"
    return f"{value:.4g}"


def cell(mean: float, sd: float, n: int, seeds: int) -> str:
    """mean ± sd, both with the decimals that give the sd two digits; n where it is not `seeds`."""
    if math.isfinite(sd) and sd > 0 and math.isfinite(mean):
        if 1e-4 <= sd < 1e6:
            decimals = max(0, 1 - math.floor(math.log10(sd)))
            shown = f"{mean:,.{decimals}f} ± {sd:,.{decimals}f}"
        else:
            shown = f"{mean:.4g} ± {sd:.2g}"
    else:
        shown = number(mean) + (" ± 0" if sd == 0 else "")
    return shown if n == seeds else f"{shown} (n={n})"


def short(key: str) -> str:
    """flow.n_flows → n_flows, network.name → network."""
    parts = key.split(".")
    return parts[-2] if parts[-1] == "name" and len(parts) > 1 else parts[-1]


def cells(table: Table, metric: str) -> list[str]:
    """A metric's column as text, empty where a row lacks it."""
    column = [cell(*row.metrics[metric], row.seeds) if metric in row.metrics else "" for row in table.rows]
    # That 20,000 parameters do not vary over the seeds goes without saying.
    return column if direction(metric) else [c.removesuffix(" ± 0") for c in column]


# --------------------------------------------------------------------------------- terminal, CSV, Markdown


def sentences(runs: Sequence[Run], table: Table) -> list[str]:
    """What a reader must know beside the table, a sentence each."""
    counts = {state: sum(run.state == state for run in runs) for state in dict.fromkeys(r.state for r in runs)}
    states = ", ".join(f"{n} {state}" for state, n in counts.items())
    said = [f"{len(runs)} run{'s' * (len(runs) != 1)}: {states}."]
    said += unsaid(table)
    if table.repeats:
        labels = ", ".join(entry.run.label for entry in table.repeats)
        said.append(f"Left out of the means, as a later run has the same settings and seed: {labels}.")
    if lacking := older(runs):
        said.append(lacking)
    return said


def unsaid(table: Table) -> list[str]:
    """Sentences on what has no column: parameters that follow from a name, and all that is the same in every row."""
    asked = table.questions()
    same = {p: text(table.rows[0].settings[p]) for p in table.parameters if groups(table.rows, [p]) == 1}
    found: dict[str, list[str]] = {}
    for q in (p for p in table.parameters if p not in asked and p not in same):
        name = next(p for p in asked if follows(table.rows, q, p))
        values = {f"{row.settings[name]} {text(row.settings[q])}": 0 for row in table.rows if row.settings[q] != ""}
        found.setdefault(name, []).append(f"{q} ({', '.join(values)})")
    said = [f"With {name} go {', '.join(parts)}." for name, parts in found.items()]
    same = {p: value for p, value in same.items() if p not in asked and value}
    same |= {metric: number(value) for metric, value in table.constant().items()}
    if same:
        said.append(f"The same in every row: {', '.join(f'{k} {v}' for k, v in same.items())}.")
    return said


def problems(runs: Sequence[Run]) -> list[Run]:
    """The runs that are not complete, failed ones first."""
    return sorted((r for r in runs if r.state != "complete"), key=lambda r: (r.state, r.label))


def columns_shown(table: Table) -> list[str]:
    """Metrics worth a column, quality first."""
    constant = table.constant()
    quality = table.quality()
    rest = [m for m in table.metrics if m not in quality]
    return [m for m in (*quality, *rest) if m not in constant and not ASIDE.search(m)]


def to_rich(table: Table, title: str, width: int, most: int = 100) -> Any:
    """A table for the terminal: as many columns as the width holds and the best `most` rows."""
    from rich.table import Table as RichTable
    from rich.text import Text

    rows = sorted(table.ranked()[:most])
    parameters = table.questions()
    columns = [(p, [Text(text(table.rows[i].settings[p])) for i in rows], "left") for p in parameters]
    columns.append(("seeds", [Text(str(table.rows[i].seeds)) for i in rows], "right"))
    for metric in columns_shown(table):
        column, best = cells(table, metric), table.best(metric)
        styled = [Text(column[i], style="bold green" if i in best else "") for i in rows]
        columns.append((metric, styled, "right"))
    widths = [max(map(len, (head, *column))) + 3 for head, column, _ in columns]
    fitting = len(parameters) + 2
    while fitting < len(columns) and sum(widths[: fitting + 1]) < width:
        fitting += 1

    notes = []
    if left := len(table.rows) - len(rows):
        notes.append(f"{left:,} more rows")
    if left := len(columns) - fitting:
        notes.append(f"{left} more column{'s' * (left > 1)} ({', '.join(head for head, *_ in columns[fitting:])})")
    caption = f"… and {' and '.join(notes)} in the files." if notes else None
    shown = RichTable(title=title, caption=caption, title_justify="left", caption_justify="left")
    for head, _, justify in columns[:fitting]:
        shown.add_column(Text(head), justify=justify, overflow="fold")
    for values in zip(*(column for _, column, _ in columns[:fitting]), strict=True):
        shown.add_row(*values)
    return shown


def to_csv(table: Table, path: Path) -> None:
    """Parameters, seeds, and for every metric its `.mean`, `.sd` and `.n`, in full precision."""
    import pandas as pd

    records = []
    for row in table.rows:
        record = {**row.settings, "seeds": row.seeds}
        for metric in table.metrics:
            mean, sd, n = row.metrics.get(metric, (math.nan, math.nan, 0))
            record |= {f"{metric}.mean": mean, f"{metric}.sd": sd, f"{metric}.n": n}
        records.append(record)
    head = [
        *table.parameters,
        "seeds",
        *(f"{m}.{part}" for m in table.metrics for part in ("mean", "sd", "n")),
    ]
    pd.DataFrame(records, columns=head).to_csv(path, index=False)


def to_markdown(table: Table) -> str:
    """A Markdown table, best values in bold."""
    shown = columns_shown(table)
    parameters = table.questions()
    head = [*parameters, "seeds", *shown]
    lines = [head, ["---"] * len(parameters) + ["---:"] * (1 + len(shown))]
    columns = []
    for metric in shown:
        best = table.best(metric)
        columns.append([f"**{c}**" if i in best else c for i, c in enumerate(cells(table, metric))])
    for i, row in enumerate(table.rows):
        settings = [_markdown(text(row.settings[p])) for p in parameters]
        lines.append([*settings, str(row.seeds), *(column[i] for column in columns)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def problems_markdown(runs: Sequence[Run]) -> str:
    """Failed and unfinished runs with their reason, as a list."""
    return "".join(f"- `{run.label}` {run.state}: {_markdown(run.reason)}\n" for run in problems(runs))


def _markdown(value: str) -> str:
    return value.replace("|", "\\|")


def _natural(value: Any) -> tuple:
    """Sorts numbers as numbers, before text."""
    return (0, value, "") if isinstance(value, int | float) else (1, 0, str(value))
