"""Runs as a table: one row per setting, each metric as mean ± sd over its seeds.

mean = Σ mᵢ/n, sd² = Σ (mᵢ − mean)²/(n − 1) over the n seeds of a setting; with one seed there is no sd. The best mean
of a metric is the lowest one, or the highest where higher is better. Numbers that only describe a run have no best.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from flowdiff.report.divergence import rising
from flowdiff.runs.collect import Run, Value, evaluations, number_or_text, swept_parameters

HIGHER_IS_BETTER = re.compile(
    r"accuracy|auroc|precision|recall|per_second|speed|coverage|density|log_prob|likelihood|eigenvalue|^is(_|$)"
    r"|^prompts_|^clip_score|^edge_f1|_agreement$"
)
DESCRIPTIVE = re.compile(
    r"^(parameters|steps|epochs?|seed|num_(samples|test|classified|captions|candidates)|latent_dims|active_units|kl|nfe|extractor_accuracy"
    r"|train_distance|levels_visited|class_means_error|data_mean_error)$|^interpolation_|_(floor|sd|se|n|sigma|shuffled)$"
)
# Metrics that accompany another one, such as those that vary from seed to seed as noise does: in the CSV only.
CSV_ONLY = re.compile(
    r"^(total_seconds|denoising_worst|levels_visited|levels_worse_than_means|class_means_error|data_mean_error)$"
    r"|^prompts_(seen|held_out)_(?!floor)|_(sd|se|sigma)$"
)
QUALITY_PREFIXES = ("fid", "fd_", "kid", "bpd", "test_loss", "val_loss")

# The columns of evaluations.csv that say how samples were drawn, and the prefixes of columns that say it in more
# detail; every other number in it is a measurement.
SAMPLING_COLUMNS = (
    *("sampler", "num_steps", "schedule", "guidance", "guidance_scale"),
    *("start", "sigma_start", "start_run", "clip", "class_label", "num_samples"),
)
SAMPLING_PREFIXES = ("sampler_", "schedule_", "guidance_")


def direction(metric: str) -> int:
    """-1 if lower is better, +1 if higher is better, 0 if the number only describes the run."""
    if DESCRIPTIVE.search(metric):
        return 0
    return 1 if HIGHER_IS_BETTER.search(metric) else -1


@dataclass(frozen=True)
class Entry:
    """One measurement of a run: its settings, its seed and its metrics.

    rising: how the distance of its samples rose while its training loss fell (flowdiff/report/divergence.py); or empty.
    """

    settings: Mapping[str, Value]
    seed: Hashable
    metrics: Mapping[str, float]
    run: Run
    rising: str = ""


@dataclass(frozen=True)
class Row:
    """One setting: its values, the entries of its seeds, and (mean, sd or nan, n) of each metric."""

    settings: dict[str, Value]
    entries: list[Entry]
    metrics: dict[str, tuple[float, float, int]]

    @property
    def seeds(self) -> int:
        return len(self.entries)


@dataclass(frozen=True)
class Table:
    """Settings as rows.

    Attributes:
        parameters: the columns of the settings, in order.
        metrics: the columns of the metrics, in order.
        rows: one row per setting.
        superseded: entries left out because a later one has the same settings and seed.
    """

    parameters: list[str]
    metrics: list[str]
    rows: list[Row]
    superseded: list[Entry] = field(default_factory=list)

    def independent_parameters(self) -> list[str]:
        """The parameters that vary and are not decided by the name of a component."""
        found: list[str] = []
        varying = (p for p in self.parameters if len(self.rows) < 2 or count_groups(self.rows, [p]) > 1)
        for q in sorted(varying, key=lambda p: not names_a_component(p)):
            deciding = (p for p in self.parameters if is_decided_by(self.rows, q, p))
            if not any(p in found or not is_decided_by(self.rows, p, q) for p in deciding):
                found.append(q)
        return [parameter for parameter in self.parameters if parameter in found]

    def best(self, metric: str) -> set[int]:
        """The rows with the best mean of a metric; none if there is nothing to compare."""
        sign = direction(metric)
        means = {i: row.metrics[metric][0] for i, row in enumerate(self.rows) if metric in row.metrics}
        means = {i: mean for i, mean in means.items() if math.isfinite(mean)}
        if not sign or len(set(means.values())) < 2:
            return set()
        top = max(means.values(), key=lambda mean: sign * mean)
        return {i for i, mean in means.items() if mean == top}

    def quality(self) -> list[str]:
        """The metrics that have a best, those of samples and likelihood first."""
        prefixes = QUALITY_PREFIXES

        def rank(metric: str) -> int:
            return next((i for i, prefix in enumerate(prefixes) if metric.startswith(prefix)), len(prefixes))

        return sorted((m for m in self.metrics if direction(m)), key=rank)

    def constant_metrics(self) -> dict[str, float]:
        """Descriptive metrics with the same value in all rows: they go into a sentence, not a column."""
        if len(self.rows) < 2:
            return {}
        values = {m: {row.metrics.get(m, (math.nan,))[0] for row in self.rows} for m in self.metrics}
        return {m: v.pop() for m, v in values.items() if not direction(m) and len(v) == 1}

    def shown_metrics(self) -> list[str]:
        """The metrics worth a column, quality first."""
        constant, quality = self.constant_metrics(), self.quality()
        ordered = (*quality, *(m for m in self.metrics if m not in quality))
        return [m for m in ordered if m not in constant and not CSV_ONLY.search(m)]

    def ranked(self) -> list[int]:
        """Row numbers, best first by the first quality metric; rows without it come last."""
        quality = self.quality()
        if not quality:
            return list(range(len(self.rows)))
        metric, sign = quality[0], direction(quality[0])

        def key(i: int) -> float:
            mean = self.rows[i].metrics.get(metric, (math.nan,))[0]
            return -sign * mean if math.isfinite(mean) else math.inf

        return sorted(range(len(self.rows)), key=key)


def count_groups(rows: Sequence[Row], parameters: Sequence[str]) -> int:
    """Number of groups of rows that these parameters distinguish."""
    return len({tuple(row.settings[p] for p in parameters) for row in rows})


def names_a_component(parameter: str) -> bool:
    """Whether the parameter's values are names of components."""
    return parameter.endswith(".name") or parameter in ("sampler", "schedule", "guidance")


def is_decided_by(rows: Sequence[Row], q: str, p: str) -> bool:
    """Whether p is a component's name that decides the value of q, as the loss decides the weighting."""
    if len(rows) < 2 or p == q or not names_a_component(p):
        return False
    return count_groups(rows, [p, q]) == count_groups(rows, [p])


def run_table(runs: Sequence[Run]) -> Table:
    """The complete runs, one row per setting of the swept parameters."""
    parameters = swept_parameters(runs)
    # Of two runs of one setting and seed the later one counts, but a damaged one replaces none that is whole.
    complete = sorted((run for run in runs if run.state == "complete"), key=lambda r: (not r.damage, r.finished))
    entries = [
        Entry({p: run.config.get(p, "") for p in parameters}, run.seed, run.metrics, run, rising(run))
        for run in complete
    ]
    return tabulate(entries, parameters)


def sampling_table(runs: Sequence[Run]) -> Table:
    """The rows of all evaluations.csv, one row per setting of the swept parameters and of the sampling."""
    parameters = swept_parameters(runs)
    rows = [(run, row) for run in runs for row in evaluations(run)]
    names = dict.fromkeys(column for _, row in rows for column in row)
    details = [c for c in names if c.startswith(SAMPLING_PREFIXES) and c not in SAMPLING_COLUMNS]
    described = (*SAMPLING_COLUMNS, *details)
    given = {column: {number_or_text(row.get(column, "")) for _, row in rows} for column in described}
    columns = [c for c in SAMPLING_COLUMNS if len(given[c]) > 1 or (c in ("sampler", "num_steps") and given[c] - {""})]
    # A missing detail says only that another component was used, or that an older version wrote the row.
    columns += [c for c in details if len(given[c] - {""}) > 1]
    entries = []
    for run, row in rows:
        settings = {p: run.config.get(p, "") for p in parameters}
        settings |= {c: number_or_text(row.get(c, "")) for c in columns}
        metrics = {k: v for k, v in row.items() if k not in ("seed", *described) and isinstance(v, int | float)}
        entries.append(Entry(settings, (run.seed, row.get("seed", "")), metrics, run))
    return tabulate(entries, [*parameters, *columns])


def tabulate(entries: Iterable[Entry], parameters: Sequence[str]) -> Table:
    """Group entries of equal settings into rows; of two with the same seed the later one counts."""
    import numpy as np
    import pandas as pd

    groups: dict[tuple[Value, ...], dict[Hashable, Entry]] = {}
    superseded = []
    for entry in entries:
        group = groups.setdefault(tuple(entry.settings[p] for p in parameters), {})
        if entry.seed in group:
            superseded.append(group.pop(entry.seed))
        group[entry.seed] = entry
    order = sorted(groups, key=lambda values: [_natural(v) for v in values])

    flat = [(i, entry.metrics) for i, key in enumerate(order) for entry in groups[key].values()]
    frame = pd.DataFrame([metrics for _, metrics in flat], index=[i for i, _ in flat], dtype=float)
    by_row = frame.groupby(level=0)
    with np.errstate(invalid="ignore"):  # a diverged run's inf has no sd
        means, sds, counts = (of.to_dict("index") for of in (by_row.mean(), by_row.std(), by_row.count()))
    rows = []
    for i, key in enumerate(order):
        statistics = ((m, means[i][m], sds[i][m], counts[i][m]) for m in frame.columns)
        metrics = {m: (mean, sd, int(n)) for m, mean, sd, n in statistics if n}
        rows.append(Row(dict(zip(parameters, key, strict=True)), list(groups[key].values()), metrics))
    return Table(list(parameters), list(frame.columns), rows, superseded)


def _natural(value: Value) -> tuple[int, float, str]:
    """A sort key that puts numbers in numeric order, before text."""
    return (0, value, "") if isinstance(value, int | float) else (1, 0, value)
