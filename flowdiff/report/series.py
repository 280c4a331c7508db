"""Which series of a plot each row of a table belongs to."""

from __future__ import annotations

from collections.abc import Sequence

from flowdiff.report.style import COLOURS
from flowdiff.report.table import SAMPLING_COLUMNS, Row, count_groups
from flowdiff.report.text import setting_text, short_key


def series(rows: Sequence[Row], parameters: Sequence[str]) -> tuple[list[str], list[str]]:
    """Name the series of each row, by as many parameters as make series that colours can distinguish.

    Returns the name of each row's series and the parameters that had to be left out of the names.
    """
    varying = [p for p in parameters if len({row.settings[p] for row in rows}) > 1]
    overridden = {key for row in rows for entry in row.entries for key in entry.run.overridden_keys}
    implied = {p for p in varying if p not in overridden and p.removesuffix(".name") not in overridden}
    # Sampling settings come first, the sampler before all, then overridden keys, then those with the fewest values.
    varying.sort(key=lambda p: ((*SAMPLING_COLUMNS, p).index(p), p in implied, count_groups(rows, [p])))
    used: list[str] = []
    for parameter in varying:
        if count_groups(rows, used) < count_groups(rows, [*used, parameter]) <= len(COLOURS):
            used.append(parameter)
    named = [p for p in parameters if p in used]
    settings = ([(short_key(p), row.settings[p]) for p in named if row.settings[p] != ""] for row in rows)
    names = [", ".join(f"{key}={setting_text(value)}" for key, value in found) for found in settings]
    return names, [p for p in varying if count_groups(rows, used) < count_groups(rows, [*used, p])]
