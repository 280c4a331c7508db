"""No logger beside metrics.csv."""

from __future__ import annotations

from flowdiff.loggers.base import Tracker
from flowdiff.registry import register


@register("logger", "csv")
class CSVOnly(Tracker):
    """Only metrics.csv, which every run writes."""

    def __init__(self) -> None:
        pass
