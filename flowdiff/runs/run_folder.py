"""A run's folder: the files in it, how they are read, and how they are written atomically."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from flowdiff.errors import RunError
from flowdiff.runs import records
from flowdiff.runs.exported import EXPORT, Exported, exported
from flowdiff.runs.files import as_unicode, file_lock, write_whole
from flowdiff.runs.health import Health
from flowdiff.runs.ownership import LOCK_FILE
from flowdiff.runs.undefined import reasons, written

TAIL_BYTES = 4096  # read from the end of metrics.csv for the progress of a run
FROM_SCRATCH = "from scratch"  # content of the file that reopens a run, if nothing of the earlier attempt is used
# Files that a run, its loggers and its sampling write, besides config.yaml, run.json and the logs.
WRITTEN = (
    *("metrics.csv", "evaluations.csv", "result.json", "failed.json", "pruned.json", ".evaluations.lock"),
    *("health.json", "denoising.png"),
    *("samples.png", "trajectory.png", "loss_curve.png", "interpolation.png", "reconstructions.png"),
    *("ema/*", "ema.csv"),
    *("clip/*", "checkpoints/last.ckpt", "checkpoints/last.tmp", "levels_of_step_*.json", "fit-profile*.txt"),
    *("samples/*/samples.npz", "samples/*/samples.png", "samples/*/comparison.png"),
    *("samples/*/restored.png", "samples/*/restored.npz", "samples/*/restored.json"),
    *("tensorboard/events.out.tfevents.*", "wandb/*run-*-{run_id}", "wandb/upload-begun-{run_id}"),
)


@dataclass(frozen=True)
class Label:
    """How a run is called: its id, its readable name, its sweep or None, and the overrides that describe it."""

    run_id: str
    name: str
    sweep: str | None
    overrides: tuple[str, ...]


class RunFolder:
    """The paths of one run and their contents.

    `result.json` exists exactly when the run is complete: it is written last, and atomically. `failed.json` exists
    exactly when the last attempt ended in an error, `pruned.json` when a search ended the run early. While `.reopened`
    exists, the files of an earlier attempt are still there and count no longer: see `reopen`.

    Args:
        path: the folder; it need not exist.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.label_file = self.path / "run.json"
        self.reopened_file = self.path / ".reopened"
        self.metrics = self.path / "metrics.csv"
        self.evaluations = self.path / "evaluations.csv"
        self.checkpoint = self.path / "checkpoints" / "last.ckpt"
        self.result_file = self.path / "result.json"
        self.health_file = self.path / "health.json"
        self.failed_file = self.path / "failed.json"
        self.pruned_file = self.path / "pruned.json"
        self.samples = self.path / "samples.png"
        self.trajectory = self.path / "trajectory.png"
        self.loss_curve = self.path / "loss_curve.png"
        self.interpolation = self.path / "interpolation.png"
        self.reconstructions = self.path / "reconstructions.png"
        self.denoising = self.path / "denoising.png"
        self.averages = self.path / "ema"  # snapshots of averages of the weights
        self.clip = self.path / "clip"  # the model that network=clip has trained, as transformers reads it
        self.pictures = (
            *(self.samples, self.trajectory, self.loss_curve, self.interpolation, self.reconstructions),
            self.denoising,
        )

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """An existing run folder; RunError if `path` is not one, or another program's."""
        folder = cls(path)
        if not folder.path.is_dir():
            raise RunError(f"run={path} does not exist: give the folder of a training run, e.g. one below outputs/.")
        if not folder.config_file.is_file():
            raise RunError(f"run={path} is not a run folder, it has no config.yaml: give the folder of a training run.")
        folder.config()
        return folder

    @property
    def is_complete(self) -> bool:
        """Whether the run is finished: result.json exists, can be read, and the run was not reopened."""
        if self.reopened_file.exists():
            return False
        try:
            self.result()
        except RunError:
            return False
        return True

    @property
    def weights_file(self) -> Path:
        """The file that changes when the weights do: last.ckpt, or export.json of an exported folder."""
        return self.checkpoint if self.checkpoint.is_file() else self.path / EXPORT

    def exported(self) -> Exported | None:
        """What the folder holds in place of a checkpoint if it was exported; None for a run folder."""
        return exported(self.path)

    def config(self) -> dict[str, Any]:
        """The resolved config of the run; RunError if it cannot be read."""
        try:
            config = records.read_config(self.config_file)
            parts = self.exported()
            return config if parts is None else parts.located(config, self.path)
        except records.Foreign as error:
            raise RunError(
                f"{self.path} is not a run of flowdiff, its config.yaml is of another program ({error}): give the "
                "folder of a training run."
            ) from error
        except records.Unreadable as error:
            raise RunError(
                f"{self.config_file} cannot be read ({error}): repeat the run's command with force=true."
            ) from error

    def result(self) -> records.Result:
        """The content of result.json; RunError if it cannot be read.

        Older versions wrote fewer keys. Values of another type than a run writes are left out.
        """
        try:
            return records.read_result(self.result_file)[0]
        except (FileNotFoundError, records.Unreadable) as error:
            raise RunError(
                f"{self.result_file} cannot be read ({records.one_line(error)}): the run's command continues from its "
                "last checkpoint and writes it again."
            ) from error

    def test_loss(self) -> float | None:
        """The denoising test loss of a complete run; None if its result does not contain it."""
        return self.result().get("metrics", {}).get("test_loss")

    def write_config(self, config: dict[str, Any]) -> None:
        """Make the folder and write config.yaml."""
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.config_file, config_text(config))

    def write_label(self, label: Label) -> None:
        """Make the folder and write run.json."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_whole(self.label_file, json.dumps(asdict(label), indent=2, ensure_ascii=False) + "\n")

    def label(self) -> Label | None:
        """How the run was called when it was started; None for a run of an older version."""
        try:
            found = records.json_object(self.label_file)
        except (FileNotFoundError, records.Unreadable):
            return None
        run_id, name, sweep, overrides = (found.get(key) for key in ("run_id", "name", "sweep", "overrides"))
        if not (isinstance(run_id, str) and isinstance(name, str) and isinstance(overrides, list)):
            return None
        return Label(run_id, name, sweep if isinstance(sweep, str) else None, tuple(map(str, overrides)))

    def write_result(self, result: dict[str, Any]) -> None:
        """Write result.json atomically: from now on the run is complete. Metrics without a number are null."""
        metrics = result.get("metrics") or {}
        why = reasons(metrics)
        result = {**result, "metrics": written(metrics)} | ({"reasons": why} if why else {})
        write_whole(self.result_file, json.dumps(as_unicode(result), indent=2, allow_nan=False) + "\n")
        self.reopened_file.unlink(missing_ok=True)

    def write_health(self, health: Health) -> None:
        """Write health.json atomically."""
        write_whole(self.health_file, json.dumps(health.to_json(), allow_nan=False) + "\n")

    def write_failure(self, error: str) -> None:
        """Write failed.json atomically. error: one sentence that says why the run ended."""
        write_whole(self.failed_file, json.dumps({"error": error}, ensure_ascii=False) + "\n")

    def failure(self) -> str | None:
        """Why the last attempt failed; None if it did not."""
        try:
            return records.one_line(records.read_failure(self.failed_file), limit=2000)
        except FileNotFoundError:
            return None
        except records.Unreadable:
            return "failed.json cannot be read"

    def write_pruned(self, step: int, metric: str, value: float, study: str) -> None:
        """Write pruned.json atomically: the study that ended the run, the step, the metric and its value there.

        A value that is not finite is null.
        """
        pruned = {"step": step, "metric": metric, **written({"value": value}), "study": study}
        write_whole(self.pruned_file, json.dumps(pruned, allow_nan=False) + "\n")

    def pruned(self) -> records.Pruning | None:
        """The content of pruned.json; None if the run was not ended early, or if the file cannot be read."""
        try:
            return records.read_pruning(self.pruned_file)
        except (FileNotFoundError, records.Unreadable):
            return None

    def files_of_run(self, run_id: str) -> list[Path]:
        """The files in the folder that the run with this id has written, except its config, its label and its logs.

        Other files in the folder are the user's.
        """
        return sorted(path for pattern in WRITTEN for path in self.path.glob(pattern.format(run_id=run_id)))

    def others(self) -> list[Path]:
        """What is in the folder before a run has written its config: its lock and its logs are left out."""
        ours = (LOCK_FILE, "train.log")
        return sorted(path for path in self.path.glob("*") if path.name not in ours)

    def reopen(self, *, from_scratch: bool) -> None:
        """Mark the run as not ended, to continue it or to train it from scratch. The caller must own the folder.

        The files of the earlier attempt remain until the next one has begun (`begin`), or has failed before (`keep`).
        """
        if from_scratch or (self.result_file.exists() and not self.reopened_file.exists()):
            write_whole(self.reopened_file, FROM_SCRATCH if from_scratch else "to continue")
        self.failed_file.unlink(missing_ok=True)
        self.pruned_file.unlink(missing_ok=True)

    @property
    def starts_from_scratch(self) -> bool:
        """Whether the run is to be trained from scratch, without the files of an earlier attempt."""
        try:
            return self.reopened_file.read_text(encoding="utf-8") == FROM_SCRATCH
        except OSError:
            return False

    @property
    def continues(self) -> bool:
        """Whether there is a checkpoint from which the run would continue."""
        return self.checkpoint.is_file() and not self.starts_from_scratch

    def begin(self, earlier: Iterable[Path]) -> None:
        """Remove what an earlier attempt has left, because everything that could refuse the next one has accepted it.

        earlier: `files_of_run()` before the attempt has written anything.
        """
        if not self.reopened_file.exists():
            return
        for path in earlier if self.starts_from_scratch else ():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
            with suppress(OSError):  # unless something else is in it
                for folder in path.relative_to(self.path).parents[:-1]:
                    (self.path / folder).rmdir()
        self.result_file.unlink(missing_ok=True)
        self.reopened_file.unlink()

    def keep(self) -> None:
        """Let the result of the earlier attempt count again, because the next one has not begun."""
        self.reopened_file.unlink(missing_ok=True)

    def progress(self) -> tuple[int, float | None]:
        """Number of optimiser steps known to be done and the last training loss, from the end of metrics.csv."""
        steps, loss = 0, None
        if self.starts_from_scratch:
            return steps, loss
        with suppress(records.Unreadable):
            header, *rows = records.read_csv(self.metrics, TAIL_BYTES) or [["step"]]
            at = records.column(header, "step")
            # A row is logged under the steps done before it; a row that was cut has too few cells.
            for row in rows:
                if len(row) >= len(header) and (step := records.step_in(row[at])) is not None:
                    steps = max(steps, step + 1)
                    logged = records.number_in(row[header.index("train_loss")]) if "train_loss" in header else None
                    loss = loss if logged is None else logged
        return steps, loss

    def append_evaluation(self, row: dict[str, Any]) -> int:
        """Append a row to evaluations.csv and return the number of rows. New columns stay empty in the older rows.

        Processes that evaluate the same run at the same time wait for each other.
        """
        with file_lock(self.path / ".evaluations.lock"):
            header, *cells = self._evaluation_rows() or [[]]
            # A file that was edited by hand may have rows longer than its header: drop the excess cells.
            rows: list[dict[str, Any]] = [dict(zip(header, line, strict=False)) for line in cells]
            text = io.StringIO()
            writer = csv.DictWriter(text, list(dict.fromkeys([*header, *row])), restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows([*rows, row])
            write_whole(self.evaluations, text.getvalue())
            return len(rows) + 1

    def check_evaluations(self) -> None:
        """Raise RunError if `append_evaluation` could not keep the earlier rows, before anything is measured."""
        self._evaluation_rows()

    def _evaluation_rows(self) -> list[list[str]]:
        try:
            return records.read_csv(self.evaluations, exact=True)
        except records.Unreadable as error:
            raise RunError(
                f"{self.evaluations} cannot be read ({error}): move it elsewhere, and a new one is begun."
            ) from error


def config_text(config: dict[str, Any]) -> str:
    """What config.yaml holds."""
    return yaml.safe_dump(as_unicode(config), sort_keys=False, allow_unicode=True)


def clip_of(name: str) -> str:
    """Where a model of the library transformers lies: the CLIP model of a run for its folder, else the name itself.

    Raises:
        RunError: the run has trained no CLIP model, or is not complete.
    """
    folder = RunFolder(Path(name).expanduser())
    if not folder.label_file.is_file():
        return name
    if not folder.is_complete or not (folder.clip / "config.json").is_file():
        raise RunError(f"{name} is a run that holds no CLIP model: give a run of network=clip, once it is complete.")
    return str(folder.clip)
