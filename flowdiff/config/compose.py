"""Composing a configuration and holding it against what the components take; no torch is imported to compose one.

`compose(overrides)` reads conf/, `check(config)` raises the first offence as one sentence (ConfigurationError), and
`explain(error)` turns Hydra's own errors into such sentences.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flowdiff import registry
from flowdiff.config.explain import explain, hydra_initialized
from flowdiff.config.plugins import import_plugins, load_plugins
from flowdiff.errors import ConfigurationError, RunError
from flowdiff.runs import identity
from flowdiff.runs.run_folder import RunFolder
from flowdiff.yaml_defaults import CONF, defaults, options

log = logging.getLogger(__name__)


def compose(overrides: Iterable[str] = (), config_name: str = "config") -> DictConfig:
    """The config that `python train.py <overrides>` would see; ConfigurationError where it cannot be composed."""
    overrides = list(overrides)
    load_plugins(overrides)
    try:
        with hydra_initialized():
            return hydra_compose(config_name, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigurationError(explain(error, overrides, config_name)) from error


def resolved(config: DictConfig) -> dict[str, Any]:
    """The config as plain containers with every interpolation resolved, without Hydra's own node."""
    # Only the top level is masked, so that ${…} in what is left still sees the whole.
    plain = {
        key: OmegaConf.to_container(config[key], resolve=True) if OmegaConf.is_config(config[key]) else config[key]
        for key in config
        if key != "hydra"
    }
    if "plugins" in plain:  # found again from any folder
        plain["plugins"] = [str(Path(path).expanduser().resolve()) for path in plain["plugins"]]
    return plain


def of_run(folder: RunFolder) -> dict[str, Any]:
    """The config of a run folder, by which this version can go on with the run or sample it.

    What an older version did not know yet is as by default today, and is said. Raises RunError where components or
    keys of another version are left.
    """
    settings = folder.config()
    base = OmegaConf.load(CONF / "config.yaml")
    wanted = {
        group: option for node in base.pop("defaults") if OmegaConf.is_dict(node) for group, option in node.items()
    }
    base.pop("hydra")
    try:
        import_plugins(settings.get("plugins", []))
        new = [group for group in wanted if group in registry.GROUP_MODULES and group not in settings]
        settings |= {group: defaults(group, wanted[group]) for group in new}
        for group in registry.GROUP_MODULES.keys() & settings.keys():
            node = settings[group]
            name = node.get("name") if isinstance(node, dict) else None
            if name is None:
                raise ConfigurationError(f"{group} has no name")
            if name in options(group):
                more = {key: value for key, value in defaults(group, name).items() if key not in node}
                node |= more
                new += [f"{group}.{key}" for key in more]
            registry.check(group, node)
        new += [key for key in base if key not in settings]
        new += [f"trainer.{key}" for key in base.trainer if key not in settings.get("trainer", base.trainer)]
        settings = OmegaConf.to_container(OmegaConf.merge(base, settings), resolve=True)
    except (ConfigurationError, OmegaConfBaseException) as error:
        raise RunError(
            f"{folder.config_file} does not fit this version of flowdiff: {str(error).rstrip('.')}. Train the run "
            "anew, or take the version that made it."
        ) from error
    if new:
        _say_once(f"{folder.path} is of an older version: taken as by default today are {', '.join(new)}")
    return settings


@cache
def _say_once(message: str) -> None:
    log.warning("%s", message)


def _identity_of(root: DictConfig) -> str:
    return identity.run_id(resolved(root))


def _run_folder(root: DictConfig) -> str:
    sweep = _sweep_name(root) if root.hydra.mode == RunMode.MULTIRUN else None
    return identity.run_folder(identity.run_name(root.hydra.overrides.task, sweep), _identity_of(root))


def _run_dir(root: DictConfig) -> str:
    if root.resume:
        return root.resume
    # A run is found by what it is, whatever it was called when it was first asked for.
    there = sorted(Path("outputs").glob(f"*-{_identity_of(root)}"))
    further = [*(p for p in there if (p / "result.json").is_file()), *(p for p in there if any(p.glob("*/last.ckpt")))]
    return str(next(iter([*further, *there]), Path("outputs") / _run_folder(root)))


def _sweep_name(root: DictConfig) -> str:
    return identity.sweep_name(root.hydra.overrides.task, root.hydra.runtime.choices.get("experiment"))


OmegaConf.register_new_resolver("run_id", lambda *, _root_: _identity_of(_root_), replace=True)
OmegaConf.register_new_resolver("run_folder", lambda *, _root_: _run_folder(_root_), replace=True)
OmegaConf.register_new_resolver("run_dir", lambda *, _root_: _run_dir(_root_), replace=True)
OmegaConf.register_new_resolver("sweep_name", lambda *, _root_: _sweep_name(_root_), replace=True)
