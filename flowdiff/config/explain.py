"""Errors of Hydra and OmegaConf in one sentence: what was given, what is allowed, what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flowdiff import registry
from flowdiff.errors import nearest
from flowdiff.yaml_defaults import CONF, bringers, config_groups, options


def explain(error: Exception, overrides: Iterable[str] = (), config_name: str = "config") -> str:
    """One sentence for an error of Hydra or OmegaConf: what was given, what is allowed, what to do."""
    overrides = list(overrides)
    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and "/" in error.missing_cfg_file:
        group, name = error.missing_cfg_file.rsplit("/", 1)
        return f"{group}={name} is unknown: {nearest(name, options(group))}."
    if isinstance(error, OverrideParseException):
        reason = text.splitlines()[0].rstrip(".")
        return f"{error.override} cannot be read as an override ({reason}): write key=value, with its brackets closed."
    failed = re.match(r"Could not (?:override|append to config|delete from config)\.? ?'([^']+)'", text)
    if failed and "No match in the defaults list" in text:
        return _misplaced_group(failed.group(1), overrides)
    if failed:
        return _unknown_key(failed.group(1), overrides, config_name)
    first = (text.strip() or str(error.__cause__ or type(error).__name__)).splitlines()[0].rstrip(". ")
    return f"{first}."


@contextmanager
def hydra_initialized() -> Iterator[None]:
    """Hydra's compose API on conf/ inside the `with`; the Hydra of a running sweep is restored afterwards."""
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(CONF), version_base="1.3", job_name="flowdiff"):
            yield
    finally:
        if outer is not None:
            GlobalHydra.instance().initialize(outer)


def _unknown_key(key: str, overrides: list[str], config_name: str) -> str:
    parent, _, leaf = key.rpartition(".")
    group = parent.split(".")[0]
    try:
        # Composed with the groups' choices alone, the config shows which keys are allowed there.
        kept = [o for o in overrides if o.lstrip("+~").partition("=")[0] in config_groups() or "=" not in o]
        with hydra_initialized():
            config = hydra_compose(config_name, kept)
        if group and group not in config:
            return _misplaced_group(group, overrides)
        node = OmegaConf.select(config, parent) if parent else config
        allowed = [str(k) for k in node] if OmegaConf.is_config(node) else []
    except (HydraException, OmegaConfBaseException):
        allowed = []
    if not allowed:
        return f"{key} is not a setting of this configuration: --cfg job prints all settings."
    hint = nearest(leaf, [f for f in allowed if f != "name"])
    return f"{key} is not a setting{f' of {parent}' if parent else ''}: {hint}."


def _misplaced_group(group: str, overrides: list[str]) -> str:
    if group not in registry.GROUP_MODULES:
        return f"{group} is not a config group: {nearest(group, sorted(config_groups() - {'hydra'}))}."
    given = " ".join(o for o in overrides if o.split("=")[0] in ("network", "loss")) or "this configuration"
    article = "an" if group[0] in "aeiou" else "a"
    return f"{given} does not use {article} {group}: remove {group}=… or set {' or '.join(_users(group))}."


def _users(group: str) -> list[str]:
    """The options that use a group: those that add it, or, where such an option is itself added, what adds that."""
    found: list[str] = []
    for bringer, name, _ in bringers(group):
        found += [f"{outer}={option}" for outer, option, _ in bringers(bringer)] or [f"{bringer}={name}"]
    return list(dict.fromkeys(found))
