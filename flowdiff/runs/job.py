"""A job: one run as the process that composed it passes it to the process that trains it.

A job contains only plain values and a resolved config. So it can be pickled or written as JSON, and later edits of YAML
files do not affect it.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from flowdiff.errors import ConfigurationError, FlowdiffError, RunError
from flowdiff.runs import identity
from flowdiff.runs.files import disk_error
from flowdiff.runs.ownership import owned
from flowdiff.runs.processes import is_first_rank, take_place
from flowdiff.runs.run_folder import Label, RunFolder

log = logging.getLogger(__name__)

Retry = Literal["failed", "all", "none"]
Verdict = Literal["run", "complete", "failed", "pruned"]
RESUME_HINT = "the same command continues from its last checkpoint"


class Interrupted(FlowdiffError):
    """The run was asked to stop and can be resumed. number: the signal that asked."""

    def __init__(self, message: str, number: signal.Signals = signal.SIGINT):
        super().__init__(message)
        self.exit_status = 128 + number  # as a shell reports a program that a signal ended


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
        original: how the run was called when it was started, if this job resumes it by its folder.
    """

    config: dict[str, Any]
    path: Path
    overrides: tuple[str, ...]
    sweep: str | None = None
    original: Label | None = None

    def save(self, path: Path) -> None:
        """Write the job as JSON, for a process that is started from a command line."""
        path.write_text(json.dumps({**asdict(self), "path": str(self.path)}), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Job:
        """Read a job that `save` wrote."""
        fields = json.loads(path.read_text(encoding="utf-8"))
        original = fields["original"] and Label(
            **{**fields["original"], "overrides": tuple(fields["original"]["overrides"])}
        )
        return cls(fields["config"], Path(fields["path"]), tuple(fields["overrides"]), fields["sweep"], original)

    @property
    def label(self) -> Label:
        """How the run is called: named after the overrides that affect numbers, or as it was called at first."""
        if self.original is not None:
            return self.original
        name = identity.run_name(self.overrides, self.sweep)
        return Label(identity.run_id(self.config), name, self.sweep, self.overrides)

    @property
    def name(self) -> str:
        """The run's readable name."""
        return self.label.name

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
        self.check_folder(force)
        folder = self.folder
        if force or retry == "all":
            return "run"
        if folder.is_complete:
            return "complete"
        if retry == "none" and folder.failure() is not None:
            return "failed"
        return "pruned" if retry == "none" and folder.pruned() else "run"

    def check_folder(self, force: bool) -> None:
        """Compare whose run the folder holds with this job, before anything in it is used or removed.

        Raises:
            RunError: the folder holds another run, files of an unknown run, or with force only files of the user.
        """
        folder = self.folder
        key = "hydra.run.dir" if self.sweep is None else "hydra.sweep.dir or hydra.sweep.subdir"
        elsewhere = f"set {key} to another folder"
        mine = self.label.run_id
        if folder.config_file.exists():
            there = identity.id_of_folder(folder)
            if there != mine:
                raise RunError(f"{self.path} holds {self._other_run(there)}: {elsewhere}, or move {self.path} away.")
        elif left := folder.files_of_run(mine):
            names = ", ".join(str(path.relative_to(self.path)) for path in left[:3])
            raise RunError(
                f"{self.path} holds {names}, but no config.yaml that says which run wrote them: {elsewhere}, or move "
                "these files away."
            )
        elif force and (others := folder.others()):
            raise RunError(
                f"force=true removes the files of an earlier run, and {self.path} holds none, only other files such as "
                f"{others[0].name}: {elsewhere}, or leave force out."
            )

    def _other_run(self, there: str | None) -> str:
        try:
            found = identity.differences(self.folder.config(), self.config)
        except (RunError, TypeError, AttributeError):
            return "a config.yaml that is not that of this run"
        shown = [f"{key} is {_short(a)} there and {_short(b)} here" for key, a, b in found[:3]]
        more = [f"{len(found) - 3} more settings differ"] if len(found) > 3 else []
        return f"another run ({'; '.join([*shown, *more]) or f'its run id is {there}'})"

    def prepare(self, force: bool) -> None:
        """Mark the run as not ended; with force it starts from scratch. Busy when another process writes it."""
        take_place(self.config)
        if is_first_rank() and self.path.is_dir() and any(self.path.iterdir()):  # else a refused run would leave marks
            with owned(self.path):
                self.check_folder(force)
                self.folder.reopen(from_scratch=force)

    def execute(self, train: Callable[..., dict[str, Any]]) -> dict[str, Any]:
        """Call `train` (`flowdiff.training.run.train`) as the owner of the run folder; write errors to failed.json.

        Returns the content of result.json; {} on ranks other than 0 and for a run that a search ended early.
        """
        label = self.label
        take_place(self.config)
        with ExitStack() as stack:
            if is_first_rank():
                stack.enter_context(owned(self.path))
                self.check_folder(force=False)  # another process may have used it since the verdict
            try:
                return train(
                    self.config,
                    self.folder,
                    name=label.name,
                    run_id=label.run_id,
                    sweep=label.sweep,
                    overrides=label.overrides,
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
            except KeyboardInterrupt:
                if is_first_rank():
                    self.folder.keep()
                raise
            except Exception as error:
                disk = disk_error(error, self.path)
                if is_first_rank():
                    self.folder.keep()
                    with suppress(RunError):  # on a full disk the first error is the one to report
                        self.fail(sentence(disk or error))
                if disk is None:
                    raise
                raise disk from error

    def fail(self, error: str) -> None:
        """Write failed.json, and config.yaml if a run of a sweep failed before writing it, for the report.

        A single run that was refused leaves the result of an earlier attempt as it was.
        """
        if self.sweep is None and self.folder.is_complete:
            return
        if self.sweep is not None and not self.folder.config_file.is_file():
            self.folder.write_label(self.label)
            self.folder.write_config(self.config)
        if self.folder.config_file.is_file():
            self.folder.write_failure(error)


def _short(value: Any) -> str:
    """A setting for a message; a whole group by its name."""
    if isinstance(value, dict):
        return str(value.get("name", "a group"))
    text = "null" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"


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
