"""A job: one run as the process that composed it passes it to the process that trains it.

A job contains only plain values and a resolved config. So it can be pickled or written as JSON, and later edits of YAML
files do not affect it.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flowdiff.errors import ConfigurationError, FlowdiffError, RunError
from flowdiff.runs import identity
from flowdiff.runs.files import disk_error
from flowdiff.runs.ownership import owned
from flowdiff.runs.run_folder import RunFolder

log = logging.getLogger(__name__)

Retry = Literal["failed", "all", "none"]
Verdict = Literal["run", "complete", "failed", "pruned"]
RESUME_HINT = "the same command continues from its last checkpoint"


class Interrupted(FlowdiffError):
    """The run was asked to stop and can be resumed from its checkpoint."""

    exit_status = 130  # as a shell reports a program that Ctrl-C ended


class Pruned(FlowdiffError):
    """A search ended the run early: after `step` steps, `metric` had this value; `study` is the search's id."""

    def __init__(self, step: int, metric: str, value: float, study: str):
        super().__init__(
            f"pruned at step {step:,}: {metric} {value:.4g} is worse than that of other trials at this step."
        )
        self.details = (step, metric, value, study)


@dataclass(frozen=True)
class Job:
    """A resolved config, the folder of its run, and the overrides it was composed from.

    Args:
        config: the resolved config, plain containers only.
        path: the run folder.
        overrides: the overrides of the command line.
        sweep: name of the sweep; None for a single run.
    """

    config: dict[str, Any]
    path: Path
    overrides: tuple[str, ...]
    sweep: str | None = None

    def save(self, path: Path) -> None:
        """Write the job as JSON, for a process that is started from a command line."""
        fields = {"config": self.config, "path": str(self.path), "overrides": self.overrides, "sweep": self.sweep}
        path.write_text(json.dumps(fields))

    @classmethod
    def load(cls, path: Path) -> Job:
        """Read a job that `save` wrote."""
        fields = json.loads(path.read_text())
        return cls(fields["config"], Path(fields["path"]), tuple(fields["overrides"]), fields["sweep"])

    @property
    def name(self) -> str:
        """The overrides that affect numbers, as a readable name."""
        return identity.run_name(self.overrides, self.sweep)

    @property
    def folder(self) -> RunFolder:
        """The run folder."""
        return RunFolder(self.path)

    @property
    def max_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.config["trainer"]["max_steps"]

    def verdict(self, retry: Retry, force: bool) -> Verdict:
        """Whether to "run" the job, or why not: it is complete, or failed or was pruned and is not to be retried."""
        folder = self.folder
        if force or retry == "all":
            return "run"
        if folder.is_complete:
            return "complete"
        if retry == "none" and folder.failure() is not None:
            return "failed"
        return "pruned" if retry == "none" and folder.pruned() else "run"

    def prepare(self, force: bool) -> None:
        """Mark the run as not ended; with force empty its folder. Busy when another process writes it."""
        if is_first_rank() and self.path.is_dir():
            with owned(self.path):
                self.folder.reopen(from_scratch=force)

    def execute(self, train: Callable[..., dict[str, Any]]) -> dict[str, Any]:
        """Call `train` (`flowdiff.training.run.train`) as the owner of the run folder; write errors to failed.json.

        Returns the content of result.json; {} on ranks other than 0 and for a run that a search ended early.
        """
        with ExitStack() as stack:
            if is_first_rank():
                stack.enter_context(owned(self.path))
            try:
                return train(
                    self.config,
                    self.folder,
                    name=self.name,
                    run_id=identity.run_id(self.config),
                    sweep=self.sweep,
                    overrides=self.overrides,
                )
            except Pruned as end:
                log.info("%s", end)
                if is_first_rank():
                    self.folder.write_pruned(*end.details)
                return {}
            except Interrupted:
                if is_first_rank():
                    raise
                sys.exit()  # with status 0: Lightning kills rank 0 when another rank ends with an error
            except Exception as error:
                disk = disk_error(error, self.path)
                if is_first_rank():
                    with suppress(RunError):  # on a full disk the first error is the one to report
                        self.fail(sentence(disk or error))
                if disk is None:
                    raise
                raise disk from error

    def fail(self, error: str) -> None:
        """Write failed.json, and config.yaml if a run of a sweep failed before writing it, for the report."""
        if self.sweep is not None and not self.folder.config_file.is_file():
            self.folder.write_config(self.config)
        if self.folder.config_file.is_file():
            self.folder.write_failure(error)


def sentence(error: BaseException) -> str:
    """An error on one line: its whole message if it is a FlowdiffError, otherwise its type and first line."""
    lines = str(error).strip().splitlines()
    if isinstance(error, FlowdiffError):
        return " ".join(lines)
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def checked_retry(retry: Any) -> Retry:
    """Return `retry` if it is allowed; ConfigurationError otherwise."""
    if retry not in ("failed", "all", "none"):
        raise ConfigurationError(
            f"retry={retry} is not allowed: set it to failed (run what failed again), all or none."
        )
    return retry


def is_first_rank() -> bool:
    """Whether this process is rank 0 of its run, the only one that writes."""
    given: Iterable[str | None] = (os.environ.get(key) for key in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return int(next((rank for rank in given if rank is not None), 0)) == 0
