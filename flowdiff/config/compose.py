"""Composing a configuration from conf/, from overrides, or from a run folder."""

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
from flowdiff.runs.provenance import made_by
from flowdiff.runs.run_folder import RunFolder
from flowdiff.yaml_defaults import CONF, defaults, options, plain_node

log = logging.getLogger(__name__)


def compose(overrides: Iterable[str] = (), config_name: str = "config") -> DictConfig:
    """The config of `python train.py <overrides>`; ConfigurationError if it cannot be composed."""
    overrides = list(overrides)
    load_plugins(overrides)
    try:
        with hydra_initialized():
            return hydra_compose(config_name, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigurationError(explain(error, overrides, config_name)) from error


def resolved(config: DictConfig) -> dict[str, Any]:
    """The config as plain containers with all interpolations resolved, without Hydra's own node."""
    # Each top-level value is resolved within the whole config, so that its ${…} find other keys.
    plain: dict[str, Any] = {
        key: OmegaConf.to_container(config[key], resolve=True) if OmegaConf.is_config(config[key]) else config[key]
        for key in map(str, config)
        if key != "hydra"
    }
    if "plugins" in plain:  # absolute, so that the run can be loaded from any folder
        plain["plugins"] = [str(Path(path).expanduser().resolve()) for path in plain["plugins"]]
    return plain


def of_run(folder: RunFolder) -> dict[str, Any]:
    """The config of a run folder, completed so that this version can resume or sample the run.

    Settings that an older version did not have get today's defaults, and a warning names them.

    Raises:
        RunError: the config has components or keys that this version does not know.
    """
    settings = folder.config()
    base = plain_node(OmegaConf.load(CONF / "config.yaml"), resolve=False)
    wanted = {
        group: option for node in base.pop("defaults") if isinstance(node, dict) for group, option in node.items()
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
        new += [f"trainer.{key}" for key in base["trainer"] if key not in settings.get("trainer", base["trainer"])]
        settings = plain_node(OmegaConf.merge(base, settings))
    except (ConfigurationError, OmegaConfBaseException) as error:
        raise RunError(
            f"{folder.config_file} does not fit this version of flowdiff: {str(error).rstrip('.')}. Train the run "
            f"again, or use {_maker(folder)}."
        ) from error
    if new:
        _warn_once(f"{folder.path} was made by an older version: {', '.join(new)} get today's defaults")
    return settings


@cache
def _warn_once(message: str) -> None:
    log.warning("%s", message)


def _maker(folder: RunFolder) -> str:
    """The version of flowdiff that made a run."""
    try:
        return made_by(folder.result())
    except RunError:  # the run is not complete
        return made_by({})


def _identity_of(root: DictConfig) -> str:
    return identity.run_id(resolved(root))


def _run_folder(root: DictConfig) -> str:
    sweep = _sweep_name(root) if root.hydra.mode == RunMode.MULTIRUN else None
    return identity.run_folder(identity.run_name(root.hydra.overrides.task, sweep), _identity_of(root))


def _run_dir(root: DictConfig) -> str:
    if root.resume:
        return root.resume
    # A run is found by its identity, whatever its readable name was.
    there = sorted(Path("outputs").glob(f"*-{_identity_of(root)}"))
    further = [*(p for p in there if (p / "result.json").is_file()), *(p for p in there if any(p.glob("*/last.ckpt")))]
    return str(next(iter([*further, *there]), Path("outputs") / _run_folder(root)))


def _sweep_name(root: DictConfig) -> str:
    return identity.sweep_name(root.hydra.overrides.task, root.hydra.runtime.choices.get("experiment"))


OmegaConf.register_new_resolver("run_id", lambda *, _root_: _identity_of(_root_), replace=True)
OmegaConf.register_new_resolver("run_folder", lambda *, _root_: _run_folder(_root_), replace=True)
OmegaConf.register_new_resolver("run_dir", lambda *, _root_: _run_dir(_root_), replace=True)
OmegaConf.register_new_resolver("sweep_name", lambda *, _root_: _sweep_name(_root_), replace=True)
