"""Names to components: `@register(group, name)` on a class, `create(group, node)` from a config node.

A component's signature is its contract. Parameters before `*` are *runtime* parameters: built objects and shapes that
the program passes. Parameters after `*` are *hyperparameters*: exactly the keys of `conf/<group>/<name>.yaml`. Their
annotations (`PositiveInt`, `Literal["l1", "l2"]`, …) are their types and ranges, checked by pydantic. `**settings`
stands for the hyperparameters of the base class's constructor.

Nothing here imports torch. The package of a group is imported when one of its names is first looked up.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from flowdiff.errors import ConfigurationError, nearest, text_hint
from flowdiff.yaml_defaults import defaults

# Package or module of each config group, imported on first lookup.
GROUP_MODULES = {
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
    "measurement": "flowdiff.diffusion.measurements",
    "posterior": "flowdiff.diffusion.posteriors",
    "loss": "flowdiff.diffusion.losses",
    "conditioner": "flowdiff.models.conditioners",
    "first_stage": "flowdiff.models.first_stage",
    "adapter": "flowdiff.models.adapters",
    "dataset": "flowdiff.data",
    "hint": "flowdiff.data.hints",
    "metrics": "flowdiff.evaluation.metrics",
    "optimizer": "flowdiff.training.optimizers",
    "accelerator": "flowdiff.training.accelerators",
    "logger": "flowdiff.loggers",
}

# Components that have no config group of their own: they are lines of another group's YAML, metrics.compare.<name>.
NESTED_MODULES = {"comparison": "flowdiff.evaluation.comparisons"}


C = TypeVar("C", bound=type)


@dataclass(frozen=True)
class Requirement:
    """What a component needs of the component that another group names; passed to `register(…, requires=[…])`.

    Args:
        group: the other config group; the requirement is ignored where the config does not have it.
        fits: (class of the other component, its config node) → whether the two go together.
        reason: why they do not go together: a clause that follows a colon.
        remedy: what to do instead: a clause that follows a semicolon.
        when: ({group: config node}) → whether the requirement applies; always by default.
        setting: the setting of the component that brings the requirement, named in the sentence; its name by default.
        other_setting: the setting of the other component that breaks it, named in the sentence; its name by default.
    """

    group: str
    fits: Callable[[type, Mapping[str, Any]], bool]
    reason: str
    remedy: str
    when: Callable[[Mapping[str, Mapping[str, Any]]], bool] = lambda nodes: True
    setting: str | None = None
    other_setting: str | None = None


_components: dict[str, dict[str, type]] = {group: {} for group in (*GROUP_MODULES, *NESTED_MODULES)}
_requirements: dict[type, tuple[Requirement, ...]] = {}
_imported: set[str] = set()


def register(group: str, name: str, requires: typing.Iterable[Requirement] = ()) -> Callable[[C], C]:
    """Class decorator: make the class known as `name` in config group `group`.

    Args:
        group: a config group, or `comparison`.
        name: what stands behind `<group>=` on the command line.
        requires: what the class needs of the components that other groups name.

    Raises:
        ConfigurationError: the group does not exist, or another class already has the name.
    """
    _module_of(group)

    def decorate(component: C) -> C:
        known = _components[group].get(name)
        if known is not None and _source(known) != _source(component):
            raise ConfigurationError(
                f"{group} {name!r} is already registered by {known.__module__}.{known.__qualname__}."
            )
        _components[group][name] = component
        _requirements[component] = tuple(requires)
        return component

    return decorate


def _source(component: type) -> tuple[str, str]:
    """File and name of a class: a plugin may be imported twice, by its own name and by `plugins=[…]`."""
    module = sys.modules.get(component.__module__)
    return getattr(module, "__file__", None) or component.__module__, component.__qualname__


def names(group: str) -> list[str]:
    """All registered names of a group, sorted; imports the group's package."""
    _import_group(group)
    return sorted(_components[group])


def resolve(group: str, name: str) -> type:
    """The class registered as `name`; ConfigurationError suggests the nearest name and lists all."""
    known = names(group)
    if name not in _components[group]:
        raise ConfigurationError(f"{group}={name} is unknown: {nearest(name, known)}.")
    return _components[group][name]


def name_of(group: str, component: object) -> str:
    """The registered name of a component's class."""
    names_of = {known: name for name, known in _components[group].items()}
    # A module with parametrised weights has a class of its own, which is derived from the registered one.
    return next(names_of[kind] for kind in type(component).__mro__ if kind in names_of)


def requirements(component: type) -> tuple[Requirement, ...]:
    """What a registered class needs of the components of other groups."""
    return _requirements[component]


def hyperparameters(component: type) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters with their types: the settings that a YAML file of this component holds."""
    return {p.name: p for p in _parameters(component) if p.kind is p.KEYWORD_ONLY}


def runtime_parameters(component: type) -> list[str]:
    """The parameters before `*`, which the program passes."""
    return [p.name for p in _parameters(component) if p.kind is p.POSITIONAL_OR_KEYWORD]


@cache
def _parameters(component: type) -> list[inspect.Parameter]:
    """The parameters of a constructor with their types; those of its base class's settings in place of **settings."""
    own = inspect.signature(component, eval_str=True).parameters
    bases = (base for base in component.__mro__ if "__init__" in vars(base))
    next(bases)  # whose constructor this is
    if all(p.kind is not p.VAR_KEYWORD for p in own.values()) or (base := next(bases, None)) is None:
        return list(own.values())
    return [*own.values(), *(p for name, p in hyperparameters(base).items() if name not in own)]


def check(group: str, node: Mapping[str, Any], where: str | None = None) -> dict[str, Any]:
    """Check a config node against its component's signature and return the hyperparameters.

    A hyperparameter whose type is a dataclass is a group of settings, checked in the same way.

    Args:
        group: the config group.
        node: `name` and hyperparameters.
        where: key of the node in the config, if it differs from the group.

    Raises:
        ConfigurationError: the first of: unknown name or key, missing key, wrong type, value out of range.
    """
    component = resolve(group, str(node["name"]))
    fields = {
        name: (Any if p.annotation is p.empty else p.annotation, ... if p.default is p.empty else p.default)
        for name, p in hyperparameters(component).items()
    }
    given = {key: value for key, value in node.items() if key != "name"}
    return _checked(fields, given, where or group, f"{group}={node['name']}")


def _checked(fields: Mapping[str, tuple[Any, Any]], given: dict[str, Any], where: str, owner: str) -> dict[str, Any]:
    """The given settings in the types of the fields {key: (type, default)}."""
    import pydantic

    for key, value in given.items():
        if key not in fields:
            allowed = nearest(key, fields) if fields else "it takes no settings"
            raise ConfigurationError(f"{where}.{key} is not a setting of {owner}: {allowed}.")
        kind = fields[key][0]
        if is_dataclass(kind) and isinstance(kind, type) and not isinstance(value, kind):
            given[key] = _checked_group(kind, value, f"{where}.{key}")
    config = pydantic.ConfigDict(strict=True, arbitrary_types_allowed=True, protected_namespaces=())
    # A pydantic model's fields must not shadow its attributes: they get a prefix, and the settings' names are aliases.
    model: type[pydantic.BaseModel] = pydantic.create_model(  # type: ignore[call-overload]  # fields are computed
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
            raise ConfigurationError(f"{where}.{key} is missing: {owner} needs it.") from None
        # A union fails once for each of its members: each message names one of the allowed types.
        messages = [e["msg"] for e in error.errors() if e["loc"][0] == first["loc"][0]]
        expected = ", or ".join(dict.fromkeys(m[0].lower() + m[1:] for m in messages))
        raise ConfigurationError(
            f"{where}.{key}={given[key]} is not allowed: {expected}{text_hint(given[key], expected)}."
        ) from None
    return {k: getattr(valid, f"p_{k}") for k in fields}


def _checked_group(kind: type, given: Any, where: str) -> Any:
    """The dataclass `kind` made of a mapping of settings."""
    hints = typing.get_type_hints(kind, include_extras=True)
    if not isinstance(given, Mapping):
        keys = ", ".join(f"{where}.{key}" for key in hints)
        raise ConfigurationError(f"{where}={given} is not allowed: it is a group of settings; set {keys}.")
    return kind(**_checked({key: (hint, ...) for key, hint in hints.items()}, dict(given), where, where))


def create(group: str, node: Mapping[str, Any] | str, **runtime: Any) -> Any:
    """Create the component that a config node describes.

    Args:
        group: the config group.
        node: a mapping with `name` and hyperparameters, or a name, which takes the defaults of its YAML file.
        **runtime: values for the runtime parameters, and for hyperparameters that replace the node's. Values that the
            component's signature does not take are ignored, so that every component asks only for what it uses.

    Raises:
        ConfigurationError: the node does not fit the component's signature.
    """
    if isinstance(node, str):
        node = defaults(group, node)
    component = resolve(group, str(node["name"]))
    overrides = {k: v for k, v in runtime.items() if k in hyperparameters(component)}
    settings = check(group, {**node, **overrides})
    wanted = {k: v for k, v in runtime.items() if k in runtime_parameters(component)}
    return component(**wanted, **settings)


def completed(group: str, node: Mapping[str, Any]) -> dict[str, Any]:
    """A config node whose missing settings are those of the YAML file of its name."""
    return {**defaults(group, str(node["name"])), **node}


def import_plugin(path: str | Path) -> dict[str, list[str]]:
    """Run a user's Python file, whose `@register` lines add components; returns {group: [added names]}."""
    path = Path(path).expanduser().resolve()
    if not path.is_file():
        raise ConfigurationError(f"plugins names {path}, which is not a file: give the path of a Python file.")
    module_name = f"flowdiff_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None  # the path is a file
    assert spec.loader is not None
    module = sys.modules[module_name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise ConfigurationError(f"plugin {path} could not be imported: {type(error).__name__}: {error}.") from error
    added = {
        group: sorted(n for n, c in known.items() if c.__module__ == module_name)
        for group, known in _components.items()
    }
    return {group: names for group, names in added.items() if names}


def _module_of(group: str) -> str:
    modules = {**GROUP_MODULES, **NESTED_MODULES}
    if group not in modules:
        raise ConfigurationError(f"{group!r} is not a config group: {nearest(group, modules)}.")
    return modules[group]


def _import_group(group: str) -> None:
    name = _module_of(group)
    if name in _imported:
        return
    package = importlib.import_module(name)
    for module in pkgutil.iter_modules(getattr(package, "__path__", ())):
        importlib.import_module(f"{name}.{module.name}")
    _imported.add(name)
