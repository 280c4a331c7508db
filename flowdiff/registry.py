"""Names to components: `@register(group, name)` on a class, `build(group, node)` from a config node.

A component's signature is its contract. What stands before `*` is *runtime*: built objects and shapes that the
program hands in. What stands after `*` are *hyperparameters*: exactly the keys of `conf/<group>/<name>.yaml`, whose
types and ranges are the annotations (`PositiveInt`, `Literal["l1", "l2"]`, …), checked by pydantic.

Nothing here imports torch; a group's room is imported when one of its names is first resolved.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flowdiff.errors import ConfigurationError, nearest
from flowdiff.yaml_defaults import defaults

# Which room holds which config group: the whole of it is imported when a name of the group is asked for.
ROOMS = {
    "activation": "flowdiff.models.activations",
    "flow": "flowdiff.models.flows",
    "whitening": "flowdiff.models.networks.whitening",
    "network": "flowdiff.models.networks",
    "scaling": "flowdiff.diffusion.scalings",
    "weighting": "flowdiff.diffusion.weightings",
    "sigma_sampler": "flowdiff.diffusion.sigma_samplers",
    "schedule": "flowdiff.diffusion.schedules",
    "sampler": "flowdiff.diffusion.samplers",
    "guidance": "flowdiff.diffusion.guidance",
    "loss": "flowdiff.diffusion.losses",
    "conditioner": "flowdiff.models.conditioners",
    "first_stage": "flowdiff.models.first_stage",
    "dataset": "flowdiff.data",
    "metrics": "flowdiff.evaluation.metrics",
    "optimizer": "flowdiff.training.optimizers",
    "accelerator": "flowdiff.training.accelerators",
    "logger": "flowdiff.loggers",
}

# What is no config group of its own but a line in the YAML of one: metrics.compare.<name> of `metrics`.
PARTS = {"metric": "flowdiff.evaluation.comparisons"}

_components: dict[str, dict[str, type]] = {group: {} for group in (*ROOMS, *PARTS)}
_imported: set[str] = set()


def register(group: str, name: str) -> Callable[[type], type]:
    """Class decorator: make the class known as `name` in config group `group`."""
    _room(group)

    def decorate(component: type) -> type:
        known = _components[group].get(name)
        if known is not None and (known.__module__, known.__qualname__) != (
            component.__module__,
            component.__qualname__,
        ):
            raise ConfigurationError(
                f"{group} {name!r} is already registered by {known.__module__}.{known.__qualname__}."
            )
        _components[group][name] = component
        return component

    return decorate


def names(group: str) -> list[str]:
    """All registered names of a group, sorted (imports the group's room)."""
    _import_room(group)
    return sorted(_components[group])


def resolve(group: str, name: str) -> type:
    """The class registered as `name`; ConfigurationError names the nearest and lists all."""
    known = names(group)
    if name not in _components[group]:
        raise ConfigurationError(f"{group}={name} is unknown: {nearest(name, known)}.")
    return _components[group][name]


def hyperparameters(component: type) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters: what a YAML file of this component holds."""
    parameters = inspect.signature(component).parameters.values()
    return {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}


def runtime_parameters(component: type) -> list[str]:
    """The parameters before `*`: what the program hands in."""
    parameters = inspect.signature(component).parameters.values()
    return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]


def check(group: str, node: Mapping[str, Any], where: str | None = None) -> dict[str, Any]:
    """Hold a config node against its component's signature and return the hyperparameters.

    where: the key under which the node stands in the config, if that is not its group. Raises ConfigurationError with
    one sentence per first offence: unknown name or key, missing key, wrong type, value out of range.
    """
    import pydantic

    where = where or group
    component = resolve(group, str(node["name"]))
    hints = typing.get_type_hints(component.__init__, include_extras=True)
    fields = {
        name: (hints.get(name, Any), ... if p.default is p.empty else p.default)
        for name, p in hyperparameters(component).items()
    }
    given = {key: value for key, value in node.items() if key != "name"}
    for key in given:
        if key not in fields:
            allowed = nearest(key, fields) if fields else "it takes no settings"
            raise ConfigurationError(f"{where}.{key} is not a setting of {group}={node['name']}: {allowed}.")
    config = pydantic.ConfigDict(strict=True, arbitrary_types_allowed=True, protected_namespaces=())
    # A model's fields may not shadow its own attributes, hence the prefix-free names are carried as aliases.
    model = pydantic.create_model(
        "Hyperparameters",
        __config__=config,
        **{f"p_{k}": (t, pydantic.Field(d, alias=k)) for k, (t, d) in fields.items()},
    )
    try:
        valid = model(**given)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        if first["type"] == "missing":
            raise ConfigurationError(f"{where}.{key} is missing: {group}={node['name']} needs it.") from None
        # A union fails once for each of its members: all of them are what is allowed.
        messages = [e["msg"] for e in error.errors() if e["loc"][0] == first["loc"][0]]
        expected = ", or ".join(dict.fromkeys(m[0].lower() + m[1:] for m in messages))
        raise ConfigurationError(f"{where}.{key}={given[key]} is not allowed: {expected}.") from None
    return {k: getattr(valid, f"p_{k}") for k in fields}


def build(group: str, node: Mapping[str, Any] | str, **runtime: Any) -> Any:
    """Make the component that a config node describes.

    node: a mapping with `name` and hyperparameters, or just a name, which then takes its YAML file's defaults; a
    hyperparameter given in `runtime` replaces the node's. Runtime values that the component's signature does not
    take are left out, so that every component asks only for what it uses.
    """
    if isinstance(node, str):
        node = defaults(group, node)
    component = resolve(group, str(node["name"]))
    overrides = {k: v for k, v in runtime.items() if k in hyperparameters(component)}
    settings = check(group, {**node, **overrides})
    wanted = {k: v for k, v in runtime.items() if k in runtime_parameters(component)}
    return component(**wanted, **settings)


def completed(group: str, node: Mapping[str, Any]) -> dict[str, Any]:
    """A config node, with what it leaves out as in the YAML file of its name."""
    return {**defaults(group, str(node["name"])), **node}


def import_plugin(path: str | Path) -> dict[str, list[str]]:
    """Run a user's Python file for its `@register` lines; returns what it added as {group: [names]}."""
    path = Path(path).expanduser().resolve()
    if not path.is_file():
        raise ConfigurationError(f"plugins names {path}, which is not a file: give the path of a Python file.")
    module_name = f"flowdiff_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigurationError(f"plugin {path} could not be imported: {type(error).__name__}: {error}.") from error
    added = {
        group: sorted(n for n, c in known.items() if c.__module__ == module_name)
        for group, known in _components.items()
    }
    return {group: names for group, names in added.items() if names}


def _room(group: str) -> str:
    rooms = {**ROOMS, **PARTS}
    if group not in rooms:
        raise ConfigurationError(f"{group!r} is not a config group: {nearest(group, rooms)}.")
    return rooms[group]


def _import_room(group: str) -> None:
    room = _room(group)
    if room in _imported:
        return
    package = importlib.import_module(room)
    for module in pkgutil.iter_modules(getattr(package, "__path__", ())):
        importlib.import_module(f"{room}.{module.name}")
    _imported.add(room)
