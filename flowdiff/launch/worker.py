"""What a run's own process does; everything that a run imports is imported here, before the process is forked."""

from __future__ import annotations

import sys
from pathlib import Path

from flowdiff import config, registry
from flowdiff.runs.job import Job
from flowdiff.training import run as training

for _group in registry.GROUP_MODULES:
    registry.names(_group)  # imports the room


def work(job: Job) -> None:
    """Train one job of a sweep."""
    config.import_plugins(job.config["plugins"])
    job.execute(training.train)


if __name__ == "__main__":  # another rank of a distributed run
    work(Job.load(Path(sys.argv[1])))
