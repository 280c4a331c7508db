"""Run folders to `Run`s: what a report knows of a run is what lies in its folder.

A run folder is a folder with `config.yaml`. Beside it may lie `result.json` (exactly when the run is
complete), `failed.json` ({"error": str}, by the launcher), `pruned.json` (of a run that a search ended early),
`metrics.csv` (the training curves) and `evaluations.csv` (one row per later sampling). Nothing here loads a checkpoint
or imports torch. What lies in a folder `debug` is no result, and is read only when asked for by name.
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from flowdiff.errors import RunError

State = Literal["complete", "failed", "pruned", "unfinished", "unreadable"]

# libyaml reads a config in about a millisecond, PyYAML's own parser in ten.
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# What says where and how a run was computed, not what: never a column, and last in a comparison of two runs.
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

# The keys that today's result.json holds, dotted; an older one may lack some.
RESULT_KEYS = (
    *("run_id", "name", "sweep", "overrides", "seed", "metrics", "parameters", "steps"),
    *("seconds.train", "seconds.total", "device", "versions", "git_commit"),
)
# Which of them are measured quantities, and the names they have as columns.
MEASURED = {
    "parameters": "parameters",
    "steps": "steps",
    "seconds.train": "train_seconds",
    "seconds.total": "total_seconds",
}


@dataclass(frozen=True, eq=False)
class Run:
    """One run folder: its flat config, its state and, once complete, what it measured.

    label: its path below the folder that all runs of the report share. config: dotted key to number or text.
    reason: why a run that is not complete is not, one line. metrics: name to number, with `parameters`,
    `steps`, `train_seconds` and `total_seconds` among them. missing: keys that its result.json lacks.
    """

    folder: Path
    label: str
    state: State
    reason: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    seed: Any = ""
    overrides: tuple[str, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    finished: float = 0.0


def collect(folders: Iterable[str | Path]) -> list[Run]:
    """Every run in the folders given, each once, in the order of their paths.

    Raises RunError where a folder does not exist, is a file, cannot be read, or holds no run.
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
            raise RunError(f"{folder} contains no run: a run folder is one that holds config.yaml.")
    if not found:
        raise RunError("no folder was given: name at least one run folder, or a folder that contains run folders.")
    paths = sorted(found)
    common = os.path.dirname(paths[0]) if len(paths) == 1 else os.path.commonpath(paths)
    return [read_run(found[path], os.path.relpath(path, common)) for path in paths]


def read_run(folder: Path, label: str) -> Run:
    """The run in one folder; a file that cannot be read becomes its state and reason, never an exception."""
    try:
        with open(folder / "config.yaml", "rb") as file:
            config = flatten(yaml.load(file, Loader) or {})
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
        return Run(folder, label, "unreadable", f"config.yaml cannot be read: {_one_line(error)}", name=folder.name)

    known = {"config": config, "name": folder.name, "seed": config.get("seed", "")}
    try:
        with open(folder / "result.json", "rb") as file:
            result = json.load(file)
            finished = os.fstat(file.fileno()).st_mtime
        if not isinstance(result, dict):
            raise ValueError("it holds no mapping")
    except FileNotFoundError:
        return Run(folder, label, *_why_incomplete(folder, config), **known)
    except (OSError, ValueError) as error:
        return Run(folder, label, "unfinished", f"result.json cannot be read: {_one_line(error)}", **known)

    flat = {**result, **{f"seconds.{k}": v for k, v in _mapping(result.get("seconds")).items()}}
    metrics = {k: float(v) for k, v in _mapping(result.get("metrics")).items() if _is_number(v)}
    metrics |= {column: flat[key] for key, column in MEASURED.items() if _is_number(flat.get(key))}
    overrides = result.get("overrides")
    known |= {
        "name": str(result.get("name") or folder.name),
        "seed": result.get("seed", known["seed"]),
        "overrides": tuple(str(o) for o in overrides) if isinstance(overrides, list) else (),
    }
    missing = tuple(key for key in RESULT_KEYS if key not in flat)
    return Run(folder, label, "complete", metrics=metrics, missing=missing, finished=finished, **known)


def flatten(node: Mapping[str, Any]) -> dict[str, Any]:
    """A nested config as {dotted key: value}; numbers stay, all else becomes text."""
    flat: dict[str, Any] = {}

    def walk(node: Mapping[str, Any], prefix: str) -> None:
        for key, value in node.items():
            if isinstance(value, dict) and value:
                walk(value, f"{prefix}{key}.")
            else:
                flat[f"{prefix}{key}"] = plain(value)

    walk(node, "")
    return flat


def plain(value: Any) -> Any:
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
    """The config keys whose values differ between runs, less seeds and housekeeping.

    A group's keys that follow from its `name` (network=unet brings the channels of a unet) are left out,
    unless somebody set them by hand.
    """
    configs = [run.config for run in runs if run.config]
    keys = list(dict.fromkeys(key for config in configs for key in config))
    values = {key: [config.get(key, "") for config in configs] for key in keys}
    seeds = values.get("seed", [])
    by_hand = {override.lstrip("+~").partition("=")[0] for run in runs for override in run.overrides}

    def differs(key: str) -> bool:
        return len(set(values[key])) > 1

    def is_seed(key: str) -> bool:
        return key == "seed" or (key.endswith(".seed") and values[key] == seeds)

    def follows_from_a_name(key: str) -> bool:
        parts = key.split(".")
        names = [".".join([*parts[:depth], "name"]) for depth in range(1, len(parts))]
        return key not in by_hand and any(
            name != key and name in values and differs(name) and _determines(values[name], values[key])
            for name in names
        )

    swept = [k for k in keys if differs(k) and not is_housekeeping(k) and not is_seed(k)]
    return [key for key in swept if not follows_from_a_name(key)]


def older(runs: Sequence[Run]) -> str:
    """One sentence on the runs whose result.json lacks keys (an older version wrote it), or nothing."""
    lacking: dict[tuple[str, ...], list[str]] = {}
    for run in runs:
        if run.missing:
            lacking.setdefault(run.missing, []).append(run.label)
    if not lacking:
        return ""
    parts = [f"{', '.join(missing)} in {_listing(labels)}" for missing, labels in lacking.items()]
    return f"Missing from result.json (written by an older version; the cells stay empty): {'; '.join(parts)}."


def curves(run: Run, wanted: Callable[[str], bool]) -> dict[str, list[tuple[float, float]]]:
    """The (step, value) points of the wanted columns of a run's metrics.csv, steps rising, finite values only.

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


def evaluations(run: Run) -> list[dict[str, Any]]:
    """The rows of a run's evaluations.csv: column to number or text, empty cells left out."""
    head, *rows = _read_csv(run.folder / "evaluations.csv") or [[]]
    return [{k: _parse(v) for k, v in zip(head, row, strict=False) if v != ""} for row in rows]


def _read_csv(path: Path) -> list[list[str]]:
    """The rows of a CSV file as text; none if it is not there."""
    try:
        with open(path, newline="", encoding="utf-8", errors="replace") as file:
            return [row for row in csv.reader(line.replace("\0", "") for line in file) if row]
    except (OSError, csv.Error):
        return []


def _parse(value: str) -> Any:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(value)
    return value


def _run_folders(folder: Path, seen: set[str]) -> Iterator[Path]:
    """Run folders at any depth; what lies below a run (W&B's and Hydra's copies of the config) is not one."""
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    try:
        with os.scandir(folder) as entries:
            entries = list(entries)
    except OSError as error:
        raise RunError(f"{folder} cannot be read: {error.strerror}.") from None
    if any(entry.name == "config.yaml" for entry in entries):
        yield folder
        return
    for entry in entries:
        if entry.is_dir() and not entry.name.startswith(".") and entry.name not in ("wandb", "debug"):
            yield from _run_folders(folder / entry.name, seen)


def _why_incomplete(folder: Path, config: Mapping[str, Any]) -> tuple[State, str]:
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


def _determines(names: Sequence[Any], values: Sequence[Any]) -> bool:
    return len(set(zip(names, values, strict=True))) == len(set(names))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _one_line(error: object, limit: int = 300) -> str:
    """The text on one line; of a traceback its last line, which says what happened."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    text = lines[-1] if lines[0].startswith("Traceback") else " ".join(" ".join(lines).split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _listing(labels: Sequence[str], shown: int = 5) -> str:
    rest = len(labels) - shown
    return ", ".join(labels[:shown]) + (f" and {rest} more" if rest > 0 else "")
