"""Checking a composed config: against the signatures of its components, and against what they need of each other.

Components declare their needs where they are registered, `@register(group, name, requires=[Requirement(…)])`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from flowdiff import registry
from flowdiff.config.base_run import with_base
from flowdiff.config.explain import hydra_errors, misplaced_group
from flowdiff.config.trainer_arguments import check_trainer, is_integer, is_number
from flowdiff.errors import ConfigurationError, nearest, text_hint
from flowdiff.yaml_defaults import base_choices, base_keys, bringers

MAX_SEED = 2**32 - 1  # NumPy's largest
MAX_TAG = 64  # characters of a tag, as W&B limits it


def _is_class(value: object) -> bool:
    classes = value if isinstance(value, list) else [value]
    return value is None or all(is_integer(one, 0) for one in classes)


def _is_tag(value: object) -> bool:
    return isinstance(value, str) and value.strip() != "" and len(value) <= MAX_TAG


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _is_text_list(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_adapters(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(one, Mapping)
        and _is_text(one.get("run"))
        and is_number(one.get("weight", 1))
        and not one.keys() - {"run", "weight"}
        for one in value
    )


# Keys outside all groups: their allowed values in words, and the test.
TOP_LEVEL: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "seed": (f"an integer 0 … {MAX_SEED}", lambda v: is_integer(v, 0, MAX_SEED)),
    "resume": ("a run folder or null", lambda v: v is None or _is_text(v)),
    "force": ("true or false", lambda v: isinstance(v, bool)),
    "tags": (
        f'a list of texts of 1 to {MAX_TAG} characters, e.g. [one,two]; a number is a text in quotes, ["2026"]',
        lambda v: isinstance(v, list) and all(map(_is_tag, v)),
    ),
    "plugins": ("a list of Python files, e.g. [mine.py]", _is_text_list),
    "adapters": (
        "a list of runs of adapters and their weights, e.g. [{run: outputs/a, weight: 0.7}]",
        _is_adapters,
    ),
    "num_samples": ("an integer ≥ 1", lambda v: is_integer(v, 1)),
    "draws": ("an integer ≥ 1", lambda v: is_integer(v, 1)),
    "batch_size": ("an integer ≥ 1", lambda v: is_integer(v, 1)),
    "class_label": ("a class number ≥ 0, a list of them, or null", _is_class),
    "prompt": (
        "a text, a list of texts, or null",
        lambda v: v is None or _is_text(v) or (_is_text_list(v) and v != []),
    ),
    "prompts": ("a text file or null", lambda v: v is None or _is_text(v)),
    "negative_prompt": ("a text or null", lambda v: v is None or isinstance(v, str)),
    "start": ("noise or flow", lambda v: v in ("noise", "flow")),
    "sigma_start": ("a number > 0 or null", lambda v: v is None or (is_number(v) and v > 0)),
    "start_run": ("a run folder or null", lambda v: v is None or _is_text(v)),
    "image": (
        "a picture's file, a list of two, or null",
        lambda v: v is None or _is_text(v) or (_is_text_list(v) and len(v) == 2),
    ),
    "through": ("noise, z or ddim", lambda v: v in ("noise", "z", "ddim")),
    "source_label": ("a class number ≥ 0, a list of two, or null", _is_class),
    "source_prompt": ("a text, a list of two, or null", lambda v: v is None or _is_text(v) or _is_text_list(v)),
    "hint_of": (
        "a picture's file, a list of them, or null",
        lambda v: v is None or _is_text(v) or (_is_text_list(v) and v != []),
    ),
    "strength": ("a number > 0 and ≤ 1", lambda v: is_number(v) and 0 < v <= 1),
    "clip": ("auto, true or false", lambda v: v == "auto" or isinstance(v, bool)),
    "device": ("auto, cpu or cuda", lambda v: v in ("auto", "cpu", "cuda")),
    "evaluate": ("true or false", lambda v: isinstance(v, bool)),
    "out": ("a folder or null", lambda v: v is None or _is_text(v)),
}

# Keys whose null in sampling stands for the value of the run.
OF_RUN = ("start", "clip")
# Keys that sampling allows more values.
IN_SAMPLING: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "start": ("noise, flow, compare or image", lambda v: v in ("noise", "flow", "compare", "image")),
}


def check(config: DictConfig, overrides: Iterable[str] = ()) -> None:
    """Raise ConfigurationError for the first thing in a composed config that does not work; reads no data.

    overrides: the command line; none of them may set what `without_unused` leaves out.
    """
    with hydra_errors():  # a ${…} that cannot be resolved
        composed = {key: _plain(config[key]) for key in map(str, config) if key != "hydra"}
    plain, given = without_unused(composed), list(overrides)
    for group in composed.keys() - plain.keys():
        if any(override.lstrip("+").startswith(f"{group}.") for override in given):
            raise ConfigurationError(misplaced_group(group, given))
    _check_keys(plain)
    plain = with_base(plain)
    nodes = {group: node for group, node in plain.items() if group in registry.GROUP_MODULES}
    for group, node in nodes.items():
        registry.check(group, node)
        if not registry.runtime_parameters(registry.resolve(group, node["name"])):
            registry.create(group, node)  # its constructor checks its settings against each other
    _check_top_level(plain)
    if "trainer" in plain:
        check_trainer(plain["trainer"])
    _check_requirements(nodes)
    if "sampler" in nodes:
        schedule, sampler = (registry.create(group, nodes[group]) for group in ("schedule", "sampler"))
        schedule(sampler.num_steps)  # a schedule made of a table cannot have more steps than the table has levels


def without_unused(plain: Mapping[str, Any]) -> dict[str, Any]:
    """A config without the settings that an experiment gives to a group which the chosen network or loss does not use.

    Such a group has no name: no option of it was loaded.
    """
    unused = {
        group for group, node in plain.items() if isinstance(node, Mapping) and "name" not in node and bringers(group)
    }
    return {key: value for key, value in plain.items() if key not in unused}


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _check_keys(plain: Mapping[str, Any]) -> None:
    """Raise ConfigurationError for a key that no command has, and for one that was removed from the command line."""
    base = "sample" if "run" in plain else "config"
    choices, keys = base_choices(base), base_keys(base)
    allowed = dict.fromkeys((*keys, *choices, *registry.GROUP_MODULES))
    for key, value in plain.items():
        if key not in allowed:
            raise ConfigurationError(f"{key} is not a setting: {nearest(key, allowed)}.")
        if key in registry.GROUP_MODULES and not (isinstance(value, Mapping) and "name" in value):
            raise ConfigurationError(
                f"{key}={value} is not allowed: it is a group of settings with a name; choose an option, {key}=…."
            )
    for key in (*keys, *(group for group, option in choices.items() if option is not None)):
        if key not in plain:
            raise ConfigurationError(f"{key} is missing: this command needs it; remove ~{key}.")
    for group in registry.GROUP_MODULES.keys() - plain.keys():
        for other, option, _ in bringers(group):
            if other in plain and other in registry.GROUP_MODULES and plain[other]["name"] == option:
                raise ConfigurationError(f"{group} is missing: {other}={option} needs it; remove ~{group}.")


def _check_top_level(plain: Mapping[str, Any]) -> None:
    for key, (allowed, fits) in (TOP_LEVEL | (IN_SAMPLING if "run" in plain else {})).items():
        of_run = key in OF_RUN and "run" in plain and plain[key] is None
        if key in plain and not fits(plain[key]) and not of_run:
            raise ConfigurationError(
                f"{key}={plain[key]} is not allowed: it must be {allowed}{text_hint(plain[key], allowed)}."
            )
    if plain.get("start") == "noise" and plain.get("sigma_start") is not None:
        raise ConfigurationError(
            f"start=noise sigma_start={plain['sigma_start']:g} contradict each other: noise starts at the schedule's "
            "sigma_max; set start=flow or sigma_start=null."
        )
    if plain.get("start") == "image" and (plain.get("image") is None or plain.get("sigma_start") is not None):
        given = "no image" if plain.get("image") is None else f"sigma_start={plain['sigma_start']:g}"
        raise ConfigurationError(
            f"start=image was given with {given}: it begins with a picture, image=a.png, at the noise level that "
            "strength says; set image, and leave sigma_start out."
        )
    if plain.get("image") is not None and plain.get("start") != "image":
        raise ConfigurationError(f"image={plain['image']} is for start=image: set start=image, or remove image.")
    if plain.get("start_run") is not None and plain.get("start") not in ("flow", "compare"):
        raise ConfigurationError(
            f"start_run={plain['start_run']} is a flow to begin with, and start={plain.get('start') or 'null'} does "
            "not begin with one: set start=flow, or remove start_run."
        )
    _check_through(plain)
    if plain.get("resume") and plain.get("force"):
        raise ConfigurationError(
            f"resume={plain['resume']} force=true contradict each other: resume continues a run, force starts it from "
            "scratch."
        )


def _check_through(plain: Mapping[str, Any]) -> None:
    """Raise ConfigurationError for settings of start=image that do not go with its `through`."""
    if plain.get("through", "noise") != "noise":
        if plain.get("start") != "image":
            raise ConfigurationError(
                f"through={plain['through']} is for start=image: set start=image image=a.png, or remove through."
            )
        return
    for key in ("source_label", "source_prompt"):
        if plain.get(key) is not None:
            raise ConfigurationError(
                f"{key}={plain[key]} says at what a picture is encoded, and through=noise encodes none: set through=z "
                f"or ddim, or remove {key}."
            )
    if isinstance(plain.get("image"), list):
        raise ConfigurationError(
            f"image={plain['image']} names two pictures, and through=noise begins with one: set through=z or ddim for "
            "the way between them, or give one picture."
        )


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
