"""metrics.csv and nothing else."""

from __future__ import annotations

from flowdiff.loggers.base import Tracker
from flowdiff.registry import register


@register("logger", "csv")
class CSVOnly(Tracker):
    """metrics.csv and nothing else."""

    def __init__(self):
        pass
