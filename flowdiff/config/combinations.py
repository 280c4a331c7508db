"""Checking a composed config: against the signatures of its components, and against what they need of each other.

Components declare their needs where they are registered, `@register(group, name, requires=[Requirement(…)])`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf

from flowdiff import registry
from flowdiff.errors import ConfigurationError, nearest
from flowdiff.yaml_defaults import CONF


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_class(value: object) -> bool:
    return value is None or _is_integer(value) or (isinstance(value, list) and all(map(_is_integer, value)))


# Keys outside all groups: their allowed values in words, and the test.
TOP_LEVEL: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "seed": ("an integer ≥ 0", lambda v: _is_integer(v) and v >= 0),
    "force": ("true or false", lambda v: isinstance(v, bool)),
    "tags": ("a list of words, e.g. [one,two]", lambda v: isinstance(v, list)),
    "plugins": ("a list of Python files, e.g. [mine.py]", lambda v: isinstance(v, list)),
    "num_samples": ("an integer ≥ 1", lambda v: _is_integer(v) and v >= 1),
    "batch_size": ("an integer ≥ 1", lambda v: _is_integer(v) and v >= 1),
    "class_label": ("a class number, a list of them, or null", _is_class),
    "start": ("noise, flow or compare", lambda v: v in ("noise", "flow", "compare")),
    "sigma_start": ("a number > 0 or null", lambda v: v is None or (isinstance(v, int | float) and v > 0)),
    "device": ("auto, cpu or cuda", lambda v: v in ("auto", "cpu", "cuda")),
    "evaluate": ("true or false", lambda v: isinstance(v, bool)),
}


def check(config: DictConfig) -> None:
    """Raise ConfigurationError for the first thing in a composed config that does not work; reads no data."""
    plain = {key: _plain(config[key]) for key in map(str, config) if key != "hydra"}
    nodes = {group: node for group, node in plain.items() if group in registry.GROUP_MODULES}
    for group, node in nodes.items():
        registry.check(group, node)
        if not registry.runtime_parameters(registry.resolve(group, node["name"])):
            registry.create(group, node)  # its constructor checks its settings against each other
    _check_top_level(plain)
    _check_trainer(plain.get("trainer"))
    _check_requirements(nodes)
    if "sampler" in nodes:
        schedule, sampler = (registry.create(group, nodes[group]) for group in ("schedule", "sampler"))
        schedule(sampler.num_steps)  # a schedule made of a table cannot have more steps than the table has levels


@cache
def trainer_defaults() -> dict[str, Any]:
    """The trainer's arguments in conf/config.yaml, with interpolations as they are written."""
    trainer = OmegaConf.to_container(OmegaConf.load(CONF / "config.yaml").trainer)
    assert isinstance(trainer, dict)
    return {str(key): value for key, value in trainer.items()}


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _check_top_level(plain: Mapping[str, Any]) -> None:
    for key, (allowed, fits) in TOP_LEVEL.items():
        if key in plain and not fits(plain[key]):
            raise ConfigurationError(f"{key}={plain[key]} is not allowed: it must be {allowed}.")
    if plain.get("resume") and plain.get("force"):
        raise ConfigurationError(
            f"resume={plain['resume']} force=true contradict each other: resume continues a run, force starts it from "
            "scratch."
        )


def _check_trainer(trainer: Mapping[str, Any] | None) -> None:
    if trainer is None:
        return
    for key, low in (("max_steps", 1), ("accumulate_grad_batches", 1), ("log_every_n_steps", 1)):
        value = trainer[key]
        if not _is_integer(value) or value < low:
            raise ConfigurationError(f"trainer.{key}={value} is not allowed: it must be an integer ≥ {low}.")
    further = [key for key in trainer if key not in trainer_defaults()]
    if further:
        from lightning.pytorch import Trainer  # takes seconds to import

        allowed = inspect.signature(Trainer).parameters
        for key in further:
            if key not in allowed:
                hint = nearest(key, allowed)
                raise ConfigurationError(f"trainer.{key} is not an argument of Lightning's Trainer: {hint}.")
    clip = trainer["gradient_clip_val"]
    if clip is not None and not (isinstance(clip, int | float) and clip > 0):
        raise ConfigurationError(f"trainer.gradient_clip_val={clip} is not allowed: it must be a number > 0 or null.")


def _check_requirements(nodes: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ConfigurationError for the first requirement of a component that another component does not meet."""
    for group, node in nodes.items():
        for need in registry.requirements(registry.resolve(group, node["name"])):
            other = nodes.get(need.group)
            if other is None or not need.when(nodes) or need.fits(registry.resolve(need.group, other["name"]), other):
                continue
            ours, theirs = _named(group, node, need.setting), _named(need.group, other, need.other_setting)
            raise ConfigurationError(f"{ours} {theirs} do not go together: {need.reason}; {need.remedy}.")


def _named(group: str, node: Mapping[str, Any], setting: str | None) -> str:
    """A component, or one of its settings, as the command line names it."""
    if setting is None:
        return f"{group}={node['name']}"
    value = node.get(setting)
    return f"{group}.{setting}={str(value).lower() if isinstance(value, bool) else value}"
