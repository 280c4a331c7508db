"""The process of a run in a sweep. Importing this module imports all that a run needs, before the process is forked."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from flowdiff import config, registry
from flowdiff.launch.search.pruning import pruning
from flowdiff.runs.job import Job
from flowdiff.training.run import train

for _group in registry.GROUP_MODULES:
    registry.names(_group)  # imports the group's package


def work(job: Job) -> None:
    """Train one job of a sweep."""
    config.import_plugins(job.config["plugins"])
    job.execute(partial(train, more_callbacks=pruning))


if __name__ == "__main__":  # another rank of a distributed run
    work(Job.load(Path(sys.argv[1])))
