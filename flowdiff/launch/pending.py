"""Which jobs of a sweep are still to be run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flowdiff.launch.board import Board, Row
from flowdiff.runs.job import Job, Retry
from flowdiff.runs.lock import Busy

Pairs = list[tuple[Job, Row]]


def pending(pairs: Sequence[tuple[Job, Row]], board: Board, retry: Retry, force: bool) -> Pairs:
    """The jobs to run, each folder once; of the others the board says why not. Changes no folder."""
    chosen: Pairs = []
    seen: set[Path] = set()
    for job, row in pairs:
        verdict = job.verdict(retry, force)
        if job.path in seen:
            board.change(row, "skipped", "the same run as another of this sweep")
        elif verdict == "complete":
            board.change(row, "skipped", "complete; force=true trains it anew")
        elif verdict == "failed":
            board.change(row, "failed", f"before: {job.folder.failure()} (retry=failed tries again)")
        elif verdict == "pruned":
            board.change(row, "pruned", f"before, at step {job.folder.pruned()['step']:,}")
        else:
            chosen.append((job, row))
        seen.add(job.path)
    return chosen


def prepared(pairs: Pairs, board: Board, force: bool) -> Pairs:
    """The same jobs with their folders made ready, less those that another process is writing."""
    ready: Pairs = []
    for job, row in pairs:
        try:
            job.prepare(force)
            ready.append((job, row))
        except Busy as error:
            board.change(row, "busy", str(error))
    return ready
