"""The config of a run folder, completed so that this version can resume or sample the run on this machine."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flowdiff import registry
from flowdiff.config.plugins import import_plugins
from flowdiff.errors import ConfigurationError, RunError
from flowdiff.runs.machine_settings import get_value
from flowdiff.runs.moving import found_again, move, with_absolute_paths
from flowdiff.runs.provenance import made_by
from flowdiff.runs.records import is_integer
from flowdiff.runs.renamed_settings import ADDED
from flowdiff.runs.run_folder import RunFolder
from flowdiff.yaml_defaults import CONF, defaults, options, plain_node

log = logging.getLogger(__name__)


def of_run(folder: RunFolder, moved: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The config of a run folder, completed so that this version can resume or sample the run on this machine.

    Settings that an older version did not have get the values at which the run is what it was, as listed in
    flowdiff/runs/renamed_settings.py; others get today's defaults, and a warning names them.

    Args:
        folder: the run.
        moved: {dotted key of MOVABLE: its value here} for what is in another place than the run recorded.

    Raises:
        RunError: the config has components or keys that this version does not know.
        ConfigurationError: a key of `moved` is not a setting of the run, or its value is not allowed.
    """
    settings, new = _completed(folder, moved or {})
    if new:
        _warn_once(f"{folder.path} was made by an older version: {', '.join(new)} get today's defaults")
    return settings


def check_run(folder: RunFolder, moved: Mapping[str, Any]) -> None:
    """Raise the errors of `of_run`, without its warning: to ask before anything is written into the folder."""
    _completed(folder, moved)


def _completed(folder: RunFolder, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What `of_run` returns, and the keys that get today's defaults."""
    settings = folder.config()
    moved = dict(given)
    exported = folder.exported()
    if exported is not None and exported.plugins and "plugins" not in moved:
        named = ", ".join(str(folder.path / path) for path in exported.plugins)
        raise RunError(
            f"{folder.path} uses components of {named}, and code of an exported folder runs only if you ask for it: "
            "read it, then give plugins=[…] on the command line, or moved={'plugins': […]} to flowdiff.load."
        )
    if "plugins" in moved:
        settings["plugins"] = [str(Path(str(path)).expanduser().resolve()) for path in moved.pop("plugins") or []]
    base = plain_node(OmegaConf.load(CONF / "config.yaml"), resolve=False)
    wanted = {
        group: option for node in base.pop("defaults") if isinstance(node, dict) for group, option in node.items()
    }
    base.pop("hydra")
    try:
        _check_types(settings)
        import_plugins(settings.get("plugins", []))
        new = [group for group in wanted if group in registry.GROUP_MODULES and group not in settings]
        settings |= {group: defaults(group, wanted[group]) for group in new}
        new = [group for group in new if group not in ADDED]
        for group in [group for group in registry.GROUP_MODULES if group in settings]:
            node = settings[group]
            name = node.get("name") if isinstance(node, dict) else None
            if not isinstance(name, str):
                raise ConfigurationError(f"{group} has no name")
            if name in options(group):
                more = {key: value for key, value in defaults(group, name).items() if key not in node}
                node |= {key: ADDED.get(f"{group}.{key}", value) for key, value in more.items()}
                new += [f"{group}.{key}" for key in more if f"{group}.{key}" not in ADDED]
            registry.check(group, node)
        base |= {key: value for key, value in ADDED.items() if key in base}
        new += [key for key in base if key not in settings and key not in ADDED]
        new += [f"trainer.{key}" for key in base["trainer"] if key not in settings.get("trainer", base["trainer"])]
        settings = plain_node(OmegaConf.merge(base, settings))
    except (ConfigurationError, OmegaConfBaseException) as error:
        raise RunError(
            f"{folder.config_file} does not fit this version of flowdiff: {_first_line(error)}. Train the run "
            f"again, or use {_maker(folder)}."
        ) from error
    settings = found_again(settings, folder.path, _usual(settings, True), _usual(settings, False))
    return _moved(settings, moved, folder), new


def _check_types(settings: Mapping[str, Any]) -> None:
    """Raise ConfigurationError unless what is read from every config has the type that all versions have written."""
    lacking = [group for group in ("dataset", "network") if group not in settings]
    if lacking:
        raise ConfigurationError(f"it has no {' and no '.join(lacking)}")
    trainer = settings.get("trainer", {})
    wanted = (
        ("seed", settings.get("seed", 0), is_integer, "an integer"),
        ("tags", settings.get("tags", []), _is_list, "a list"),
        ("plugins", settings.get("plugins", []), _is_list, "a list"),
        ("trainer", trainer, lambda value: isinstance(value, dict), "a mapping"),
        ("trainer.max_steps", get_value(settings, "trainer.max_steps") or 1, is_integer, "an integer"),
    )
    for key, value, fits, kind in wanted:
        if not fits(value):
            raise ConfigurationError(f"{key}={value} is not {kind}")


def _is_list(value: object) -> bool:
    return isinstance(value, list)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(". ")


def record_moved(folder: RunFolder, moved: Mapping[str, Any]) -> None:
    """Write settings of MOVABLE into the config.yaml of a run, for later commands; its run id stays as it was.

    Raises:
        ConfigurationError: as `of_run`.
        RunError: as `of_run`, or the folder cannot be written.
    """
    checked = of_run(folder, moved)
    settings = folder.config()
    for key in moved:
        move(settings, key, get_value(checked, key))
    folder.write_config(settings)


def _moved(settings: dict[str, Any], moved: Mapping[str, Any], folder: RunFolder) -> dict[str, Any]:
    for key, value in moved.items():
        group, _, leaf = key.partition(".")
        if key == "guidance.inner.run" and not isinstance(settings["guidance"].get("inner"), dict):
            raise ConfigurationError(f"{key} is not a setting of {folder.path}, whose guidance has no inner guidance.")
        registry.check(group, {**settings[group], leaf: value} if "." not in leaf else settings[group])
        move(settings, key, value)
    return with_absolute_paths(settings)


def _usual(settings: Mapping[str, Any], variables: bool) -> dict[str, Any]:
    """{dotted key: default} of the options that a run uses; variables: whether environment variables count."""
    nodes = {group: settings[group] for group in registry.GROUP_MODULES if group in settings}
    return {
        f"{group}.{key}": value
        for group, node in nodes.items()
        if node["name"] in options(group)
        for key, value in defaults(group, node["name"], variables).items()
    }


@cache
def _warn_once(message: str) -> None:
    log.warning("%s", message)


def _maker(folder: RunFolder) -> str:
    """The version of flowdiff that made a run."""
    try:
        return made_by(folder.result())
    except RunError:  # the run is not complete
        return made_by({})
