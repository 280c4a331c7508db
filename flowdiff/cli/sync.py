"""`flowdiff sync FOLDER`: upload runs that were logged offline to W&B."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from flowdiff.errors import FlowdiffError, RunError

if TYPE_CHECKING:
    from flowdiff.loggers.offline import OfflineRun

PARALLEL_UPLOADS = 4


def main(argv: Sequence[str] | None = None) -> int:
    """Upload the pending runs and print a table; returns 1 if an upload failed."""
    parser = argparse.ArgumentParser(
        prog="flowdiff sync",
        description="Upload runs that W&B has logged offline; uploaded and running ones are skipped.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="the folder of a sweep, or of one run")
    parser.add_argument("--dry-run", action="store_true", help="list the runs without uploading")
    given = parser.parse_args(argv)

    from flowdiff.loggers.offline import offline_runs

    folder = Path(given.folder)
    found = offline_runs(folder)
    if not found:
        elsewhere = os.environ.get("WANDB_DIR")
        hint = f": WANDB_DIR is set, try flowdiff sync {elsewhere}" if elsewhere else ""
        raise RunError(
            f"{folder} contains no run that W&B logged offline (no wandb/offline-run-* in a run folder){hint}."
        )
    if not given.dry_run and any(map(_is_due, found)):
        _need_key()
    outcomes = [_plan(run) for run in found] if given.dry_run else _upload(found)
    _show(found, outcomes)
    return 1 if any(outcome.startswith("failed") for outcome in outcomes) else 0


def _need_key() -> None:
    from flowdiff.loggers.wandb import has_wandb_key

    if not has_wandb_key():
        raise RunError("flowdiff sync needs a W&B API key and there is none: set WANDB_API_KEY or run `wandb login`.")


def _upload(runs: Sequence[OfflineRun]) -> list[str]:
    from flowdiff.progress import counting

    with counting("uploading") as progress, ThreadPoolExecutor(PARALLEL_UPLOADS) as pool:
        outcomes = [pool.submit(_outcome, run) for run in runs]
        try:
            for done, outcome in enumerate(outcomes, 1):
                outcome.result()
                progress(done, len(runs))
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [outcome.result() for outcome in outcomes]


def _outcome(run: OfflineRun) -> str:
    """Upload one run and say what happened; a failure does not stop the others."""
    if not _is_due(run):
        return _plan(run)
    try:
        run.upload()
    except (FlowdiffError, OSError) as error:
        return f"failed: {error}"
    return "uploaded"


def _is_due(run: OfflineRun) -> bool:
    return bool(run.pending) and not run.is_running


def _plan(run: OfflineRun) -> str:
    if not run.pending:
        return "uploaded before"
    return "still running: repeat this when it has ended" if run.is_running else "to upload"


def _show(runs: Sequence[OfflineRun], outcomes: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column("run", overflow="fold")
    table.add_column("id")
    table.add_column("fragments", justify="right")
    table.add_column("", overflow="fold")
    for run, outcome in zip(runs, outcomes, strict=True):
        style = "red" if outcome.startswith("failed") else "green" if outcome.startswith("uploaded") else ""
        table.add_row(Text(run.folder.name), Text(run.run_id), str(len(run.fragments)), Text(outcome), style=style)
    Console().print(table)
