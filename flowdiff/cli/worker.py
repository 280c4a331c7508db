"""What a run's own process does; everything that a run imports is imported here, before the process is forked."""

from __future__ import annotations

from flowdiff import config, registry, training
from flowdiff.launch.job import Job

for _group in registry.ROOMS:
    registry.names(_group)  # imports the room


def work(job: Job) -> None:
    """Train one job of a sweep."""
    config.import_plugins(job.config["plugins"])
    job.execute(training.train)
