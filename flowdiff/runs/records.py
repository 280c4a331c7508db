"""Readers of the files in a run folder: one for each kind of file, which checks what the file holds.

A reader returns values of the types that a run writes, or raises `Unreadable`, whose message is one line that says why.
Nobody else parses these files, so a damaged or foreign file cannot surprise the code behind the readers.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, TypeGuard, cast

import yaml

from flowdiff.runs.health import Health
from flowdiff.runs.renamed_settings import in_current_names

# libyaml reads a config in about a millisecond, PyYAML's own parser in ten.
try:
    from yaml import CSafeLoader as YAML_LOADER
except ImportError:  # PyYAML without libyaml
    from yaml import SafeLoader as YAML_LOADER  # type: ignore[assignment]

LARGEST_INTEGER = 2**63 - 1
# Top-level keys of a run's config besides the groups.
TOP_LEVEL = frozenset({"seed", "resume", "force", "retry", "plugins", "tags", "trainer", "hashed_as"})
ALWAYS_CONFIGURED = ("network", "dataset")  # every version has written these groups
NOT_PRINTABLE = "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]"  # control characters, halves of pairs


class Unreadable(Exception):
    """A file does not hold what a run writes; the message is one line that says why."""


class Foreign(Unreadable):
    """A config.yaml was written by another program."""


class Result(TypedDict, total=False):
    """The content of result.json; older versions wrote fewer keys. A metric without a number is None."""

    run_id: str
    name: str
    sweep: str | None
    overrides: list[str]
    seed: int
    metrics: dict[str, float | None]
    reasons: dict[str, str]
    parameters: int
    steps: int
    seconds: dict[str, float]
    device: str
    versions: dict[str, str]
    git_commit: str | None


class Pruning(TypedDict):
    """The content of pruned.json: the study that ended the run, and the metric and its value at a step."""

    step: int
    metric: str
    value: float | None
    study: str


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value is a number that a float can hold; true and false are not numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        float(value)
    except OverflowError:
        return False
    return True


def is_integer(value: object) -> TypeGuard[int]:
    """Whether a value is an integer of at most 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST_INTEGER


def printable(text: str) -> str:
    """A text that every terminal, page and file accepts: without control characters, except tabs and line ends."""
    return re.sub(NOT_PRINTABLE, "\ufffd", text)


def one_line(error: object, limit: int = 300) -> str:
    """A text or an error on one line; of a traceback its last line, which says what happened."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    lines = printable(text).strip().splitlines() or [type(error).__name__]
    text = lines[-1] if lines[0].startswith("Traceback") else " ".join(" ".join(lines).split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


# ---------------------------------------------------------------------------------------------------- config.yaml


def read_config(path: Path) -> dict[str, Any]:
    """A run's config with today's names of its settings.

    Raises:
        Unreadable: the file is missing or is not YAML with a mapping.
        Foreign: its keys are not those of a flowdiff config.
    """
    try:
        content = _content(path)
    except FileNotFoundError as error:
        raise Unreadable(one_line(error)) from error
    try:
        node = yaml.load(content, YAML_LOADER)
    except (ValueError, TypeError, ArithmeticError, RecursionError, yaml.YAMLError) as error:
        raise Unreadable(_first_line(error)) from error
    if not isinstance(node, dict):
        raise Unreadable("it does not contain a mapping")
    unknown = [key for key in node if key not in TOP_LEVEL]
    groups = (group for key in ALWAYS_CONFIGURED if isinstance(group := node.get(key), dict))
    if unknown and "plugins" not in node and not any(_is_text(group.get("name")) for group in groups):
        raise Foreign(f"it has {_listing(unknown)} and no {' or '.join(ALWAYS_CONFIGURED)}")
    if not all(isinstance(key, str) for key in node):
        raise Unreadable(f"it has {_listing(key for key in node if not isinstance(key, str))} as a key")
    try:
        _check_plain(node, "")
    except RecursionError as error:
        raise Unreadable("it contains itself") from error
    return in_current_names(node)


def is_foreign(folder: Path) -> bool:
    """Whether a folder holds a config.yaml that another program wrote."""
    try:
        read_config(folder / "config.yaml")
    except Foreign:
        return True
    except Unreadable:
        return False
    return False


def _check_plain(node: object, where: str) -> None:
    """Raise Unreadable for the first value that JSON does not have, such as a date."""
    if isinstance(node, dict):
        for key, value in node.items():
            _check_plain(value, f"{where}.{key}" if where else str(key))
    elif isinstance(node, list):
        for value in node:
            _check_plain(value, where)
    elif node is not None and not isinstance(node, str | int | float):
        raise Unreadable(f"{one_line(where, limit=80)} is a {type(node).__name__}, which is the type of no setting")


# ----------------------------------------------------------------------- result.json, failed.json, pruned.json


def read_result(path: Path) -> tuple[Result, tuple[str, ...]]:
    """The values of result.json that have the right type, and the dotted keys of those that do not.

    Raises:
        FileNotFoundError: there is no such file: the run is not complete.
        Unreadable: it is not JSON with an object.
    """
    good: dict[str, Any] = {}
    wrong: list[str] = []
    for key, value in json_object(path).items():
        if key in _ENTRIES and isinstance(value, dict):
            fits = _ENTRIES[key]
            good[key] = {name: entry for name, entry in value.items() if fits(entry)}
            wrong += [f"{key}.{name}" for name in value if name not in good[key]]
        elif key in _ENTRIES or (key in _VALUES and not _VALUES[key](value)):
            wrong.append(key)
        else:
            good[key] = value
    return cast(Result, good), tuple(printable(key) for key in wrong)  # each value was checked above


def read_failure(path: Path) -> str:
    """The sentence in failed.json.

    Raises:
        FileNotFoundError: there is no such file: the run did not fail.
        Unreadable: it is not JSON with a text as `error`.
    """
    error = json_object(path).get("error")
    if not isinstance(error, str):
        raise Unreadable("its error is not a text")
    return error


def read_pruning(path: Path) -> Pruning:
    """The content of pruned.json.

    Raises:
        FileNotFoundError: there is no such file: no search ended the run.
        Unreadable: it is not JSON with a step, a metric and a value.
    """
    found = json_object(path)
    step, metric, value, study = (found.get(key) for key in ("step", "metric", "value", "study"))
    if not is_integer(step) or not isinstance(metric, str) or not (value is None or is_number(value)):
        raise Unreadable("its step, metric or value is not one that a search writes")
    return {"step": step, "metric": metric, "value": value, "study": str(study)}


def read_health(path: Path) -> Health:
    """The content of health.json.

    Raises:
        FileNotFoundError: there is no such file: the health of the score was not measured.
        Unreadable: it is not JSON with the curves that a run writes.
    """
    try:
        return Health.of_json(json_object(path))
    except ValueError as error:
        raise Unreadable(one_line(error)) from error


def _is_text(value: object) -> bool:
    return isinstance(value, str)


# The test of each value of result.json; of mappings, the test of each of their values.
_VALUES: Mapping[str, Callable[[object], bool]] = {
    **dict.fromkeys(("run_id", "name", "device"), _is_text),
    **dict.fromkeys(("sweep", "git_commit"), lambda value: value is None or _is_text(value)),
    **dict.fromkeys(("seed", "parameters", "steps"), is_integer),
    "overrides": lambda value: isinstance(value, list) and all(map(_is_text, value)),
}
_ENTRIES: Mapping[str, Callable[[object], bool]] = {
    "metrics": lambda value: value is None or is_number(value),
    "seconds": is_number,
    "reasons": _is_text,
    "versions": _is_text,
}


def json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        Unreadable: it is not JSON with an object.
    """
    content = _content(path)
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Unreadable(_first_line(error)) from error
    if not isinstance(found, dict):
        raise Unreadable("it does not contain a mapping")
    return found


# ------------------------------------------------------------------------------ metrics.csv, evaluations.csv


def read_csv(path: Path, tail: int | None = None, *, exact: bool = False) -> list[list[str]]:
    """The rows of a CSV file as text, the header first, without empty rows; [] if there is no file.

    Args:
        path: the file.
        tail: read only the header and this many bytes at the end; the first row of these may be cut.
        exact: refuse bytes that are not text, which are replaced otherwise.

    Raises:
        Unreadable: the file cannot be read as CSV.
    """
    try:
        content = _content(path, tail).decode("utf-8-sig", errors="strict" if exact else "replace")
        if exact and "\0" in content:
            raise Unreadable("it holds bytes that are not text")
        return [row for row in csv.reader(io.StringIO(content.replace("\0", ""), newline="")) if row]
    except FileNotFoundError:
        return []
    except UnicodeDecodeError as error:
        raise Unreadable("it holds bytes that are not text") from error
    except csv.Error as error:
        raise Unreadable(_first_line(error)) from error


def column(header: Sequence[str], name: str) -> int:
    """The place of a column; Unreadable if there is none."""
    if name not in header:
        raise Unreadable(f"it has no column {name}")
    return header.index(name)


def step_in(cell: str) -> int | None:
    """The step in a cell; None if it holds none."""
    return int(cell) if cell.isdecimal() and len(cell) < 19 else None


def number_in(cell: str) -> float | None:
    """The finite number in a cell; None if it holds none."""
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


# ----------------------------------------------------------------------------------------------------------------


def _content(path: Path, tail: int | None = None) -> bytes:
    """The content of a regular file, or its first line and `tail` bytes at its end.

    Raises:
        FileNotFoundError: there is none.
        Unreadable: it is not a file, or cannot be read.
    """
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            if tail is None:
                return file.read()
            head = file.readline()
            file.seek(max(file.tell(), file.seek(0, os.SEEK_END) - tail))
            return head + file.read()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(*error.args) from error
    except OSError as error:
        raise Unreadable(one_line(error)) from error


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; a pipe without a writer would be waited for."""
    return os.open(path, flags | os.O_NONBLOCK)


def _first_line(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
        return one_line(f"{error.problem} in line {error.problem_mark.line + 1}")
    return one_line(str(error).partition("\n")[0] or type(error).__name__)


def _listing(keys: Iterable[object], shown: int = 5) -> str:
    named = [one_line(key, limit=40) for key in keys]
    return ", ".join(named[:shown]) + (", …" if len(named) > shown else "")
