"""Reads run folders into `Run` objects. A report knows of a run only what lies in its folder.

A run folder is a folder with `config.yaml`. It may also hold `result.json` (exactly when the run is complete),
`failed.json` ({"error": str}, written by the launcher), `pruned.json` (of a run that a search ended early),
`metrics.csv` (the training curves) and `evaluations.csv` (one row per later sampling). Nothing here loads a checkpoint
or imports torch. Runs in a folder named `debug` are not results; they are read only if that folder is given itself.
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeGuard

import yaml

from flowdiff.errors import RunError
from flowdiff.runs.renamed_settings import in_current_names
from flowdiff.runs.run_folder import YAML_LOADER

State = Literal["complete", "failed", "pruned", "unfinished", "unreadable"]

Value = int | float | str
"""A config value or a cell of a CSV file: a number, or text for anything else."""

# Keys that say where and how a run was computed, not what: never a column, and last in a comparison of two runs.
HOUSEKEEPING_GROUPS = frozenset(
    {"paths", "logger", "accelerator", "hydra", "tags", "resume", "plugins", "debug"}
    | {"run_id", "name", "sweep", "group", "notes", "force", "retry", "wandb"}
)
HOUSEKEEPING_TRAINER = frozenset(
    {"accelerator", "devices", "num_nodes", "strategy", "default_root_dir", "logger", "callbacks", "profiler"}
    | {"enable_progress_bar", "enable_model_summary", "enable_checkpointing", "log_every_n_steps"}
)
HOUSEKEEPING_ENDS = frozenset(
    {"num_workers", "pin_memory", "persistent_workers", "prefetch_factor"}
    | {"root", "data_dir", "cache_dir", "output_dir"}
)

# The dotted keys that result.json holds today; an older one may lack some.
RESULT_KEYS = (
    *("run_id", "name", "sweep", "overrides", "seed", "metrics", "parameters", "steps"),
    *("seconds.train", "seconds.total", "device", "versions", "git_commit"),
)
# Those of them that are measured quantities, and their names as columns.
MEASURED = {
    "parameters": "parameters",
    "steps": "steps",
    "seconds.train": "train_seconds",
    "seconds.total": "total_seconds",
}


@dataclass(frozen=True, eq=False)
class Run:
    """One run folder: its config, its state and, once complete, its metrics.

    Attributes:
        folder: the run folder.
        label: its path below the folder that all runs of the report share.
        state: whether the run is complete, and if not, why not.
        reason: one line on why the run is not complete.
        config: dotted key to number or text.
        name: the run's name.
        seed: the run's seed, empty if unknown.
        overrides: the overrides that the run was started with.
        metrics: name to number, `parameters`, `steps`, `train_seconds` and `total_seconds` included.
        missing: keys that its result.json lacks.
        finished: when result.json was written, seconds since the epoch.
    """

    folder: Path
    label: str
    state: State
    reason: str = ""
    config: dict[str, Value] = field(default_factory=dict)
    name: str = ""
    seed: Value = ""
    overrides: tuple[str, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    finished: float = 0.0

    @property
    def overridden_keys(self) -> set[str]:
        """The config keys that the overrides set."""
        return {override.lstrip("+~").partition("=")[0] for override in self.overrides}


def collect(folders: Iterable[str | Path]) -> list[Run]:
    """Read every run in the folders, each once, in the order of their paths.

    Raises:
        RunError: a folder does not exist, is a file, cannot be read, or holds no run.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        here = Path(folder).expanduser()
        if not here.exists():
            raise RunError(f"{folder} does not exist: give a run folder, or a folder that contains run folders.")
        if not here.is_dir():
            raise RunError(f"{folder} is a file: give a run folder, or a folder that contains run folders.")
        inside = list(_run_folders(here, set()))
        for run in inside:
            found.setdefault(os.path.realpath(run), run)
        if not inside:
            raise RunError(f"{folder} contains no run: a run folder is a folder that holds config.yaml.")
    if not found:
        raise RunError("no folder was given: name at least one run folder, or a folder that contains run folders.")
    paths = sorted(found)
    common = os.path.dirname(paths[0]) if len(paths) == 1 else os.path.commonpath(paths)
    return [read_run(found[path], os.path.relpath(path, common)) for path in paths]


def read_run(folder: Path, label: str) -> Run:
    """Read one run folder. A file that cannot be read becomes the run's state and reason, never an exception."""
    try:
        with open(folder / "config.yaml", "rb") as file:
            config = flatten(in_current_names(yaml.load(file, YAML_LOADER) or {}))
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
        return Run(folder, label, "unreadable", f"config.yaml cannot be read: {_one_line(error)}", name=folder.name)

    run = Run(folder, label, "complete", config=config, name=folder.name, seed=config.get("seed", ""))
    try:
        with open(folder / "result.json", "rb") as file:
            result = json.load(file)
            finished = os.fstat(file.fileno()).st_mtime
        if not isinstance(result, dict):
            raise ValueError("it holds no mapping")
    except FileNotFoundError:
        state, reason = _why_incomplete(folder, config)
        return replace(run, state=state, reason=reason)
    except (OSError, ValueError) as error:
        return replace(run, state="unfinished", reason=f"result.json cannot be read: {_one_line(error)}")

    flat = {**result, **{f"seconds.{k}": v for k, v in _mapping(result.get("seconds")).items()}}
    metrics = {k: float(v) for k, v in _mapping(result.get("metrics")).items() if _is_number(v)}
    metrics |= {column: flat[key] for key, column in MEASURED.items() if _is_number(flat.get(key))}
    overrides = result.get("overrides")
    return replace(
        run,
        name=str(result.get("name") or folder.name),
        seed=number_or_text(result.get("seed", run.seed)),
        overrides=tuple(map(str, overrides)) if isinstance(overrides, list) else (),
        metrics=metrics,
        missing=tuple(key for key in RESULT_KEYS if key not in flat),
        finished=finished,
    )


def flatten(node: Mapping[str, Any]) -> dict[str, Value]:
    """A nested config as {dotted key: value}; numbers stay, all else becomes text."""
    flat: dict[str, Value] = {}

    def walk(node: Mapping[str, Any], prefix: str) -> None:
        for key, value in node.items():
            if isinstance(value, dict) and value:
                walk(value, f"{prefix}{key}.")
            else:
                flat[f"{prefix}{key}"] = number_or_text(value)

    walk(node, "")
    return flat


def number_or_text(value: object) -> Value:
    """A config value as a number or as text: true, null, [64, 64]."""
    if isinstance(value, str):
        return value
    if _is_number(value):
        return value if math.isfinite(value) else str(value)
    return json.dumps(value, default=str)


def is_housekeeping(key: str) -> bool:
    """Whether a config key only says where and how a run was computed: paths, logging, hardware."""
    parts = key.split(".")
    first, last = parts[0], parts[-1]
    if first == "trainer":
        return last in HOUSEKEEPING_TRAINER
    return first in HOUSEKEEPING_GROUPS or last in HOUSEKEEPING_ENDS


def swept_parameters(runs: Sequence[Run]) -> list[str]:
    """The config keys whose values differ between runs, without seeds and housekeeping.

    Keys of a group that follow from its `name` (network=unet brings the channels of a unet) are left out, unless an
    override set them.
    """
    configs = [run.config for run in runs if run.config]
    keys = list(dict.fromkeys(key for config in configs for key in config))
    values = {key: [config.get(key, "") for config in configs] for key in keys}
    seeds = values.get("seed", [])
    overridden = {key for run in runs for key in run.overridden_keys}

    def differs(key: str) -> bool:
        return len(set(values[key])) > 1

    def is_seed(key: str) -> bool:
        return key == "seed" or (key.endswith(".seed") and values[key] == seeds)

    def follows_from_a_name(key: str) -> bool:
        parts = key.split(".")
        names = [".".join([*parts[:depth], "name"]) for depth in range(1, len(parts))]
        return key not in overridden and any(
            name != key and name in values and differs(name) and _determines(values[name], values[key])
            for name in names
        )

    swept = [k for k in keys if differs(k) and not is_housekeeping(k) and not is_seed(k)]
    return [key for key in swept if not follows_from_a_name(key)]


def missing_keys_note(runs: Sequence[Run]) -> str:
    """One sentence on the runs whose result.json lacks keys because an older version wrote it, or an empty string."""
    labels: dict[tuple[str, ...], list[str]] = {}
    for run in runs:
        if run.missing:
            labels.setdefault(run.missing, []).append(run.label)
    if not labels:
        return ""
    parts = [f"{', '.join(missing)} in {_listing(found)}" for missing, found in labels.items()]
    return f"Missing from result.json (written by an older version; the cells stay empty): {'; '.join(parts)}."


def curves(run: Run, wanted: Callable[[str], bool]) -> dict[str, list[tuple[float, float]]]:
    """The (step, value) points of the wanted columns of a run's metrics.csv, by rising step, finite values only.

    A resumed run may have logged a step twice: the later row counts.
    """
    head, *rows = _read_csv(run.folder / "metrics.csv") or [[]]
    if "step" not in head:
        return {}
    at = head.index("step")
    found = {}
    for column, name in enumerate(head):
        if column == at or not wanted(name):
            continue
        points = {}
        for row in rows:
            # Cells may be empty, and a killed run may leave half a line.
            if len(row) > max(at, column) and row[column]:
                with contextlib.suppress(ValueError):
                    points[float(row[at])] = float(row[column])
        if points := {step: value for step, value in points.items() if math.isfinite(value)}:
            found[name] = sorted(points.items())
    return found


def evaluations(run: Run) -> list[dict[str, Value]]:
    """The rows of a run's evaluations.csv: column to number or text, without empty cells."""
    head, *rows = _read_csv(run.folder / "evaluations.csv") or [[]]
    return [{k: _parse(v) for k, v in zip(head, row, strict=False) if v != ""} for row in rows]


def _read_csv(path: Path) -> list[list[str]]:
    """The rows of a CSV file as text; none if the file is missing or cannot be read."""
    try:
        with open(path, newline="", encoding="utf-8", errors="replace") as file:
            return [row for row in csv.reader(line.replace("\0", "") for line in file) if row]
    except (OSError, csv.Error):
        return []


def _parse(value: str) -> Value:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(value)
    return value


def _run_folders(folder: Path, seen: set[str]) -> Iterator[Path]:
    """Run folders at any depth. Folders below a run (W&B's and Hydra's copies of the config) are not runs."""
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    try:
        with os.scandir(folder) as scan:
            entries = list(scan)
    except OSError as error:
        raise RunError(f"{folder} cannot be read: {error.strerror}.") from None
    if any(entry.name == "config.yaml" for entry in entries):
        yield folder
        return
    for entry in entries:
        if entry.is_dir() and not entry.name.startswith(".") and entry.name not in ("wandb", "debug"):
            yield from _run_folders(folder / entry.name, seen)


def _why_incomplete(folder: Path, config: Mapping[str, Value]) -> tuple[State, str]:
    """State and reason of a run without result.json."""
    step = _last_step(folder / "metrics.csv")
    target = config.get("trainer.max_steps", "")
    reached = "no step was logged" if step is None else f"last step {step}"
    if step is not None and _is_number(target) and target > 0:
        reached += f" of {target}"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        pruned = json.loads((folder / "pruned.json").read_text())
        return "pruned", f"pruned at step {pruned['step']} of {target}, {pruned['metric']} {pruned['value']:.4g}"
    try:
        error = json.loads((folder / "failed.json").read_text())["error"]
    except FileNotFoundError:
        return "unfinished", reached
    except (OSError, ValueError, KeyError, TypeError):
        return "failed", f"failed.json cannot be read; {reached}"
    return "failed", f"{_one_line(error)} ({reached})"


def _last_step(path: Path) -> int | None:
    head, *rows = _read_csv(path) or [[]]
    steps = [_parse(row[head.index("step")]) for row in rows if "step" in head and len(row) > head.index("step")]
    return next((int(step) for step in reversed(steps) if _is_number(step) and math.isfinite(step)), None)


def _determines(names: Sequence[Value], values: Sequence[Value]) -> bool:
    """Whether equal names always come with equal values."""
    return len(set(zip(names, values, strict=True))) == len(set(names))


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _one_line(error: object, limit: int = 300) -> str:
    """The text on one line; of a traceback its last line, which says what happened."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    text = lines[-1] if lines[0].startswith("Traceback") else " ".join(" ".join(lines).split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _listing(labels: Sequence[str], shown: int = 5) -> str:
    rest = len(labels) - shown
    return ", ".join(labels[:shown]) + (f" and {rest} more" if rest > 0 else "")
