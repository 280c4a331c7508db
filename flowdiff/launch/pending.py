"""Which jobs of a sweep must be run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flowdiff.launch.board import Board, Row
from flowdiff.runs.job import Job, Retry
from flowdiff.runs.ownership import Busy

JobRows = list[tuple[Job, Row]]
"""Jobs with their rows on the board."""


def pending_jobs(pairs: Sequence[tuple[Job, Row]], board: Board, retry: Retry, force: bool) -> JobRows:
    """The jobs to run, each folder once; the board shows why the others are left out. Changes no folder."""
    chosen: JobRows = []
    seen: set[Path] = set()
    for job, row in pairs:
        verdict = job.verdict(retry, force)
        if job.path in seen:
            board.change(row, "skipped", "the same run as another job of this sweep")
        elif verdict == "complete":
            board.change(row, "skipped", "complete; force=true trains it from scratch")
        elif verdict == "failed":
            board.change(row, "failed", f"earlier: {job.folder.failure()} (retry=failed runs it again)")
        elif verdict == "pruned":
            pruned = job.folder.pruned()
            board.change(row, "pruned", f"earlier, at step {pruned['step']:,}" if pruned else "earlier")
        else:
            chosen.append((job, row))
        seen.add(job.path)
    return chosen


def prepare_folders(pairs: JobRows, board: Board, force: bool) -> JobRows:
    """Prepare the run folders of these jobs; returns those that no other process is writing."""
    ready: JobRows = []
    for job, row in pairs:
        try:
            job.prepare(force)
            ready.append((job, row))
        except Busy as error:
            board.change(row, "busy", str(error))
    return ready
