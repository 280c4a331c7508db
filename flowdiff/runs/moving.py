"""Paths in a run's config: stored absolute, found again on another machine or in another folder, and given again.

The run id stays what it was: where a path counts for it, `hashed_as` keeps what the id hashes in its place.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flowdiff.runs.files import can_write
from flowdiff.runs.identity import identity_of_run
from flowdiff.runs.machine_settings import CACHES, HASHED_AS, INPUTS, NOT_IDENTITY_KEYS, get_value, set_value

_RUNS = (
    "first_stage.run",
    "guidance.run",
    "adapter.run",
    "loss.run",
)  # the run id hashes the id of the run that they name
_OF_TODAY = ("metrics.cache_dir",)  # FLOWDIFF_CACHE names nothing else, so it counts whatever a run recorded
_NAMES = (  # a folder, or a name on a hub
    *("first_stage.model", "conditioner.model", "conditioner.text.model", "metrics.compare.clip_score.model"),
)


def with_absolute_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved config (plain containers) with absolute paths instead of paths relative to the working directory."""
    result: dict[str, Any] = copy.deepcopy(dict(config))
    for key, names in _lists(result):
        move(result, key, [os.path.abspath(name) if os.path.isdir(name) else name for name in names])
    for key, given in _paths(result):
        path = (
            os.path.expanduser(given) if key.endswith(".run") else given
        )  # ~ of the others is expanded by their readers
        if not path.startswith("~") and (key not in _NAMES or os.path.isdir(path)):
            move(result, key, os.path.abspath(path))
    return result


def found_again(
    config: Mapping[str, Any], folder: Path, usual: Mapping[str, Any], without_variables: Mapping[str, Any]
) -> dict[str, Any]:
    """The config of an existing run with paths that work here, as far as they can be found.

    A missing relative path of an older version is looked for below the folders that contain the run. If an environment
    variable sets today's default, the default replaces a path that is still missing, a cache that cannot be written or
    that nobody chose, and metrics.cache_dir.

    Args:
        config: config of the run.
        folder: its folder.
        usual: {dotted key: today's default}.
        without_variables: the same for an environment without variables.
    """
    result: dict[str, Any] = copy.deepcopy(dict(config))
    for key, given in _paths(result):
        path, now = Path(given).expanduser(), usual.get(key)
        if not os.path.exists(path) and not path.is_absolute() and key not in _NAMES:
            near = next((up / path for up in folder.resolve().parents if os.path.exists(up / path)), None)
            if near is not None:
                path = near
                move(result, key, str(near))
        if now is None or now == without_variables.get(key):
            continue
        if key in CACHES:
            wanted = key in _OF_TODAY or given == without_variables.get(key) or not can_write(path)
        else:
            wanted = not os.path.exists(path) and os.path.exists(os.path.expanduser(now))
        if wanted:
            move(result, key, now)
    return result


def move(config: dict[str, Any], key: str, value: Any) -> None:
    """Change a setting of MOVABLE in place; the run id stays as it was."""
    before = get_value(config, key)
    group, _, name = key.partition(".")
    counts = key in INPUTS and name not in NOT_IDENTITY_KEYS.get(group, ())
    if counts and isinstance(before, str | list) and (before != value or key in _RUNS):
        hashed = identity_of_run(str(before)) if key in _RUNS else before
        config.setdefault(HASHED_AS, {}).setdefault(key, hashed)
    set_value(config, key, value)


def _lists(config: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """The lists of names in a config with their dotted keys: each is a folder, or a name on a hub."""
    for key in _NAMES:
        value = get_value(config, key)
        if isinstance(value, list):
            yield key, [str(name) for name in value]


def _paths(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The paths in a config with their dotted keys."""
    for key in (*INPUTS, *CACHES):
        value = get_value(config, key)
        if isinstance(value, str):
            yield key, value
