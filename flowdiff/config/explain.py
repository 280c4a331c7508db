"""Errors of Hydra and OmegaConf in one sentence: what was given, what is allowed, what to do."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import hydra
import omegaconf
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from flowdiff import registry
from flowdiff.errors import ConfigurationError, nearest
from flowdiff.runs.machine_settings import NOT_IDENTITY
from flowdiff.yaml_defaults import CONF, base_choices, bringers, config_groups, options

# Folders of the code that may be at fault for an error in composing a config.
_LIBRARIES = tuple(f"{Path(str(library.__file__)).parent}{os.sep}" for library in (hydra, omegaconf))
_OURS = f"{Path(__file__).resolve().parents[1]}{os.sep}"


def explain(error: Exception, overrides: Iterable[str] = (), config_name: str = "config") -> str:
    """One sentence for an error of Hydra or OmegaConf: what was given, what is allowed, what to do."""
    overrides = list(overrides)
    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and "/" in error.missing_cfg_file:
        group, name = error.missing_cfg_file.rsplit("/", 1)
        return f"{group}={name} is unknown: {nearest(name, options(group))}."
    if isinstance(error, OverrideParseException):
        reason = text.splitlines()[0].rstrip(".")
        if reason.startswith("Lexer"):
            reason = "it holds a character that needs quotes"
        return f"{error.override} cannot be read as an override ({reason}): write key=value, with its brackets closed."
    several = re.match(
        r"(?:Ambiguous value for argument|Sweep parameters) '(?P<given>(?P<key>[^=]+)=(?P<values>.*?))'", text
    )
    if several:
        given, key, values = several.group("given", "key", "values")
        as_list = "" if "(" in values else f", and a list needs brackets, {key}=[{values}]"
        return f"{given} gives {key} several values, and this is one run: a sweep needs -m{as_list}."
    failed = re.match(r"Could not (?:override|append to config|delete from config)\.? ?'([^']+)'", text)
    if failed and config_name == "sample" and _belongs_to_training(failed.group(1)):
        return _only_trained(failed.group(1), overrides)
    if failed and "No match in the defaults list" in text:
        return misplaced_group(failed.group(1), overrides)
    if failed:
        return _unknown_key(failed.group(1), overrides, config_name)
    if isinstance(error, InterpolationResolutionError):
        reason = re.sub(r"^\w+ raised while resolving interpolation: ", "", text.splitlines()[0]).strip("\"'. ")
        return f"{error.full_key or 'a setting'} holds a ${{…}} that cannot be resolved ({reason}): give it a value."
    if text.startswith("force-add of config groups"):
        given = text.partition("'")[2].rstrip("'")
        return f"{given} is not allowed: an option of a config group is chosen without +, {given.lstrip('+')}."
    if text.startswith("Config group override"):
        return _unusable_choice(overrides, text)
    first = (text.strip() or str(error.__cause__ or type(error).__name__)).splitlines()[0].rstrip(". ")
    return f"{first}."


@contextmanager
def hydra_errors(overrides: Iterable[str] = (), config_name: str = "config") -> Iterator[None]:
    """Raise errors of Hydra and OmegaConf inside the `with` as ConfigurationError, with the sentence of `explain`.

    Their own exception types are not enough: some mistakes of a user end in a ValueError or a TypeError from inside of
    their code.
    """
    try:
        yield
    except Exception as error:
        if not (isinstance(error, HydraException | OmegaConfBaseException) or _raised_by_hydra(error)):
            raise
        raise ConfigurationError(explain(error, overrides, config_name)) from error


def without_null_choices(overrides: Iterable[str]) -> list[str]:
    """The overrides without experiment=null and debug=null: these are the defaults, which Hydra does not take."""
    given = list(overrides)
    if not any(override.endswith("=null") for override in given):
        return given
    optional = {f"{group}=null" for group, option in base_choices("config").items() if option is None}
    return [override for override in given if override not in optional]


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


def _raised_by_hydra(error: Exception) -> bool:
    """Whether an exception, other than a disk's, comes from Hydra or OmegaConf, or from a library that they call."""
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    known = [file for file in files if file.startswith((*_LIBRARIES, _OURS))]
    return not isinstance(error, OSError) and bool(known) and known[-1].startswith(_LIBRARIES)


def _unusable_choice(overrides: list[str], text: str) -> str:
    """The sentence for a config group that is set to null, a number or another value that names no option."""
    for given in overrides:
        try:
            override = OverridesParser.create().parse_override(given)
        except HydraException:
            continue
        if override.key_or_group in config_groups() and not isinstance(override.value(), str):
            group = override.key_or_group
            return f"{given} is not allowed: {group} takes the name of an option; {nearest('', options(group))}."
    return f"{text.splitlines()[0].rstrip('.')}: a config group takes the name of an option, e.g. guidance=none."


def _belongs_to_training(key: str) -> bool:
    """Whether a key exists when a run is trained and not when it is sampled."""
    train, sample = (OmegaConf.load(CONF / f"{name}.yaml") for name in ("config", "sample"))
    chosen = {group for entry in sample.defaults if OmegaConf.is_config(entry) for group in map(str, entry)}
    return _top(key) in {*registry.GROUP_MODULES, *map(str, train)} - {*chosen, *map(str, sample)}


def _only_trained(key: str, overrides: list[str]) -> str:
    given = next((o for o in reversed(overrides) if o.lstrip("+~").partition("=")[0] == key), key)
    if _top(key) in NOT_IDENTITY:
        return f"{given} is a setting of train.py, and sample.py has no {_top(key)}: remove it."
    return (
        f"{given} cannot be changed here, because a trained run keeps its {_top(key)}: remove it, or train another run "
        f"by train.py {given}."
    )


def _top(key: str) -> str:
    """The first part of a key or of a config group."""
    return re.split(r"[./@]", key)[0]


def _unknown_key(key: str, overrides: list[str], config_name: str) -> str:
    parent, _, leaf = key.rpartition(".")
    group = parent.split(".")[0]
    try:
        # Composed with the groups' choices alone, the config shows which keys are allowed there.
        kept = without_null_choices(o for o in overrides if o.lstrip("+").partition("=")[0] in config_groups())
        with hydra_initialized():
            config = hydra_compose(config_name, kept)
        if group and group not in config:
            return misplaced_group(group, overrides)
        node = OmegaConf.select(config, parent) if parent else config
        allowed = [str(k) for k in node] if OmegaConf.is_config(node) else []
    except (HydraException, OmegaConfBaseException, ValueError):  # one of the choices is wrong too
        allowed = []
    if not allowed:
        return f"{key} is not a setting of this configuration: --cfg job prints all settings."
    hint = nearest(leaf, [f for f in allowed if f != "name"])
    return f"{key} is not a setting{f' of {parent}' if parent else ''}: {hint}."


def misplaced_group(group: str, overrides: list[str]) -> str:
    """The sentence for a setting of a group that the chosen network or loss does not use."""
    if group not in registry.GROUP_MODULES:
        return f"{group} is not a config group: {nearest(group, sorted(config_groups() - {'hydra'}))}."
    sampling = base_choices("sample").keys() - base_choices("config").keys()
    if group in sampling or any(other in sampling for other, _, _ in bringers(group)):
        return f"{group}=… is a setting of sample.py, and train.py has no {group}: remove it."
    given = " ".join(o for o in overrides if o.split("=")[0] in ("network", "loss")) or "this configuration"
    article = "an" if group[0] in "aeiou" else "a"
    return f"{given} does not use {article} {group}: remove {group}=… or set {' or '.join(_users(group))}."


def _users(group: str) -> list[str]:
    """The options that use a group: those that add it, or, where such an option is itself added, what adds that."""
    found: list[str] = []
    for bringer, name, _ in bringers(group):
        found += [f"{outer}={option}" for outer, option, _ in bringers(bringer)] or [f"{bringer}={name}"]
    return list(dict.fromkeys(found))
