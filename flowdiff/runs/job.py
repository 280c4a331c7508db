"""One run as it is handed from the process that composed it to the process that trains it.

It holds plain values only and the config already resolved, so that it can travel by pickle, JSON or a queue, and later
edits of YAML files do not reach it.
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
from flowdiff.runs.lock import held
from flowdiff.runs.run_folder import RunFolder

log = logging.getLogger(__name__)

Retry = Literal["failed", "all", "none"]
Verdict = Literal["run", "complete", "failed", "pruned"]


class Interrupted(FlowdiffError):
    """The run was asked to stop and can go on from its checkpoint."""

    exit_status = 130  # as a shell reports a program that Ctrl-C ended


class Pruned(FlowdiffError):
    """A search has ended the run early: its metric had this value after `step` steps."""

    def __init__(self, step: int, metric: str, value: float, study: str):
        super().__init__(f"pruned at step {step:,}: {metric} {value:.4g} is behind what other trials had there.")
        self.told = (step, metric, value, study)


@dataclass(frozen=True)
class Job:
    """A resolved config, the folder it is trained in, and what the run is called; sweep is None for a single run."""

    config: dict[str, Any]
    path: Path
    overrides: tuple[str, ...]
    sweep: str | None = None

    def save(self, path: Path) -> None:
        """Write it as JSON, for a process that is started by a command line."""
        fields = {"config": self.config, "path": str(self.path), "overrides": self.overrides, "sweep": self.sweep}
        path.write_text(json.dumps(fields))

    @classmethod
    def load(cls, path: Path) -> Job:
        """What `save` wrote."""
        fields = json.loads(path.read_text())
        return cls(fields["config"], Path(fields["path"]), tuple(fields["overrides"]), fields["sweep"])

    @property
    def name(self) -> str:
        """The overrides that matter, readable."""
        return identity.run_name(self.overrides, self.sweep)

    @property
    def folder(self) -> RunFolder:
        """Where it is trained."""
        return RunFolder(self.path)

    @property
    def max_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.config["trainer"]["max_steps"]

    def verdict(self, retry: Retry, force: bool) -> Verdict:
        """What is to be done: "run" it, or leave it because it is complete, or was ended and is not retried."""
        folder = self.folder
        if force or retry == "all":
            return "run"
        if folder.is_complete:
            return "complete"
        if retry == "none" and folder.failure() is not None:
            return "failed"
        return "pruned" if retry == "none" and folder.pruned() else "run"

    def prepare(self, force: bool) -> None:
        """Take back that it has ended in any way; with force empty its folder. Busy when another process writes it."""
        if is_first_rank() and self.path.is_dir():
            with held(self.path):
                self.folder.reopen(from_scratch=force)

    def execute(self, train: Callable[..., dict[str, Any]]) -> dict[str, Any]:
        """Train it (`flowdiff.training.run.train`) as the only writer of its folder; an error is left there as failed.json.

        Returns what result.json holds, {} on ranks other than 0 and for a run that a search ended early.
        """
        with ExitStack() as stack:
            if is_first_rank():
                stack.enter_context(held(self.path))
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
                    self.folder.write_pruned(*end.told)
                return {}
            except Interrupted:
                if is_first_rank():
                    raise
                sys.exit()  # in peace: Lightning kills the first rank when another ends with an error
            except Exception as error:
                told = disk_error(error, self.path)
                if is_first_rank():
                    with suppress(RunError):  # on a full disk the error itself matters more
                        self.fail(sentence(told or error))
                if told is None:
                    raise
                raise told from error

    def fail(self, error: str) -> None:
        """Leave failed.json, and for a run of a sweep that did not get to it config.yaml, for the report."""
        if self.sweep is not None and not self.folder.config_file.is_file():
            self.folder.write_config(self.config)
        if self.folder.config_file.is_file():
            self.folder.write_failure(error)


def sentence(error: BaseException) -> str:
    """An error on one line: its own words when they are meant for users, its type and first line otherwise."""
    lines = str(error).strip().splitlines()
    if isinstance(error, FlowdiffError):
        return " ".join(lines)
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def checked_retry(retry: Any) -> Retry:
    """`retry` when it is one of the three; ConfigurationError otherwise."""
    if retry not in ("failed", "all", "none"):
        raise ConfigurationError(f"retry={retry} is not allowed: take failed (those that failed), all or none.")
    return retry


def is_first_rank() -> bool:
    """Whether this process is the one of a distributed run that writes."""
    given: Iterable[str | None] = (os.environ.get(key) for key in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return int(next((rank for rank in given if rank is not None), 0)) == 0
