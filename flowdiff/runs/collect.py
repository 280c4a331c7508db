"""Reads run folders into `Run` objects. A report knows of a run only what lies in its folder.

A run folder is a folder with `config.yaml`. It may also hold `result.json` (exactly when the run is complete),
`failed.json` ({"error": str}, written by the launcher), `pruned.json` (of a run that a search ended early),
`metrics.csv` (the training curves), `health.json` (curves over σ) and `evaluations.csv` (one row per later sampling).
Nothing here loads a checkpoint or imports torch. Runs in a folder named `debug` are not results; they are read only if
that folder is given itself.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from flowdiff.errors import RunError
from flowdiff.runs import records
from flowdiff.runs.health import Health

State = Literal["complete", "failed", "pruned", "unfinished", "unreadable"]

Value = int | float | str
"""A config value or a cell of a CSV file: a number, or text for anything else."""

# Keys that say where and how a run was computed, not what: never a column, and last in a comparison of two runs.
HOUSEKEEPING_GROUPS = frozenset(
    {"paths", "logger", "accelerator", "hydra", "tags", "resume", "plugins", "debug", "hashed_as"}
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
        damage: what in the files of the run cannot be read and is left out.
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
    damage: tuple[str, ...] = ()
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
        if all(map(records.is_foreign, inside)):
            raise RunError(f"{folder} contains no run of flowdiff: its config.yaml is of another program.")
    if not found:
        raise RunError("no folder was given: name at least one run folder, or a folder that contains run folders.")
    paths = sorted(found)
    common = os.path.dirname(paths[0]) if len(paths) == 1 else os.path.commonpath(paths)
    return [read_run(found[path], os.path.relpath(path, common)) for path in paths]


def read_run(folder: Path, label: str) -> Run:
    """Read one run folder. A file that cannot be read becomes the run's state and reason, never an exception."""
    name, label = records.printable(folder.name), records.printable(label)
    try:
        config = flatten(records.read_config(folder / "config.yaml"))
    except records.Foreign as error:
        return Run(folder, label, "unreadable", f"config.yaml is of another program: {error}", name=name)
    except records.Unreadable as error:
        return Run(folder, label, "unreadable", f"config.yaml cannot be read: {error}", name=name)

    damage = _damaged_tables(folder)
    run = Run(folder, label, "complete", config=config, name=name, seed=config.get("seed", ""), damage=damage)
    try:
        result, wrong = records.read_result(folder / "result.json")
        finished = (folder / "result.json").stat().st_mtime
    except FileNotFoundError:
        state, reason = _why_incomplete(folder, config)
        return replace(run, state=state, reason=reason)
    except records.Unreadable as error:
        return replace(run, state="unfinished", reason=f"result.json cannot be read: {error}")

    measured = {**result, **{f"seconds.{key}": value for key, value in result.get("seconds", {}).items()}}
    metrics = {records.printable(k): float(v) for k, v in result.get("metrics", {}).items() if v is not None}
    metrics |= {name: float(value) for key, name in MEASURED.items() if records.is_number(value := measured.get(key))}
    return replace(
        run,
        name=records.printable(result.get("name") or folder.name),
        seed=result.get("seed", run.seed),
        overrides=tuple(map(records.printable, result.get("overrides", ()))),
        metrics=metrics,
        missing=tuple(key for key in RESULT_KEYS if key not in measured and key not in wrong),
        damage=(*(f"{key} in result.json" for key in wrong), *damage),
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
                flat[records.printable(f"{prefix}{key}")] = number_or_text(value)

    walk(node, "")
    return flat


def number_or_text(value: object) -> Value:
    """A config value as a number or as text: true, null, [64, 64]."""
    if isinstance(value, str):
        return records.printable(value)
    if records.is_number(value):
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


def damage_note(runs: Sequence[Run]) -> str:
    """One sentence on what cannot be read in the files of the runs, or an empty string."""
    parts = [f"{', '.join(run.damage)} of {run.label}" for run in runs if run.damage]
    return f"Left out, because it is not what a run writes: {_listing(parts, 20, '; ')}." if parts else ""


def curves(run: Run, wanted: Callable[[str], bool]) -> dict[str, list[tuple[float, float]]]:
    """The (step, value) points of the wanted columns of a run's metrics.csv, by rising step, finite values only.

    A resumed run may have logged a step twice: the later row counts.
    """
    head, *rows = _rows(run.folder / "metrics.csv")
    if "step" not in head:
        return {}
    at = head.index("step")
    found = {}
    for place, name in enumerate(head):
        if place == at or not wanted(name):
            continue
        # Cells may be empty, and a killed run may leave half a line.
        cells = ((records.step_in(row[at]), row[place]) for row in rows if len(row) > max(at, place) and row[place])
        logged = {float(step): records.number_in(cell) for step, cell in cells if step is not None}
        if points := sorted((step, value) for step, value in logged.items() if value is not None):
            found[name] = points
    return found


def evaluations(run: Run) -> list[dict[str, Value]]:
    """The rows of a run's evaluations.csv: column to number or text, without empty cells."""
    head, *rows = _rows(run.folder / "evaluations.csv")
    return [{records.printable(k): _parse(v) for k, v in zip(head, row, strict=False) if v != ""} for row in rows]


def health(run: Run) -> Health:
    """The curves of a run's health.json; empty if there is none or it cannot be read."""
    with contextlib.suppress(FileNotFoundError, records.Unreadable):
        return records.read_health(run.folder / "health.json")
    return Health()


def _rows(path: Path) -> list[list[str]]:
    """The rows of a CSV file, the header first; an empty header if there are none or they cannot be read."""
    with contextlib.suppress(records.Unreadable):
        return records.read_csv(path) or [[]]
    return [[]]


def _damaged_tables(folder: Path) -> tuple[str, ...]:
    """The curves and rows of a run that are not what a run writes, with the reason."""
    found = []
    for name in ("metrics.csv", "evaluations.csv"):
        try:
            rows = records.read_csv(folder / name, tail=0, exact=True)
            if rows and name == "metrics.csv":
                records.column(rows[0], "step")
        except records.Unreadable as error:
            found.append(f"{name} ({error})")
    try:
        records.read_health(folder / "health.json")
    except FileNotFoundError:
        pass
    except records.Unreadable as error:
        found.append(f"health.json ({error})")
    return tuple(found)


def _parse(cell: str) -> Value:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            if records.is_number(value := kind(cell)):
                return value
    return records.printable(cell)


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
        if len(seen) > 1:
            yield folder  # below the one that was given: reading its config.yaml says why it has only a row
            return
        raise RunError(f"{folder} cannot be read: {error.strerror}.") from None
    if any(entry.name == "config.yaml" for entry in entries):
        yield folder
        return
    for entry in entries:
        if os.path.isdir(entry.path) and not entry.name.startswith(".") and entry.name not in ("wandb", "debug"):
            yield from _run_folders(folder / entry.name, seen)


def _why_incomplete(folder: Path, config: Mapping[str, Value]) -> tuple[State, str]:
    """State and reason of a run without result.json."""
    step = _last_step(folder / "metrics.csv")
    target = config.get("trainer.max_steps", "")
    reached = "no step was logged" if step is None else f"last step {step}"
    if step is not None and records.is_integer(target) and target > 0:
        reached += f" of {target}"
    try:
        ended = records.read_pruning(folder / "pruned.json")
        value = "is not finite" if ended["value"] is None else f"{ended['value']:.4g}"
        return "pruned", f"pruned at step {ended['step']} of {target}, {records.printable(ended['metric'])} {value}"
    except FileNotFoundError:
        pass
    except records.Unreadable as error:
        return "unfinished", f"pruned.json cannot be read, {error}; {reached}"
    try:
        return "failed", f"{records.one_line(records.read_failure(folder / 'failed.json'))} ({reached})"
    except FileNotFoundError:
        return "unfinished", reached
    except records.Unreadable:
        return "failed", f"failed.json cannot be read; {reached}"


def _last_step(path: Path) -> int | None:
    head, *rows = _rows(path)
    at = head.index("step") if "step" in head else len(head)
    steps = (records.step_in(row[at]) for row in reversed(rows) if len(row) > at)
    return next((step for step in steps if step is not None), None)


def _determines(names: Sequence[Value], values: Sequence[Value]) -> bool:
    """Whether equal names always come with equal values."""
    return len(set(zip(names, values, strict=True))) == len(set(names))


def _listing(labels: Sequence[str], shown: int = 5, separator: str = ", ") -> str:
    rest = len(labels) - shown
    return separator.join(labels[:shown]) + (f" and {rest} more" if rest > 0 else "")
