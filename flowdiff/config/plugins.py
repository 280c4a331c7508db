"""Plugins: the user's Python files are imported, and their components become config options."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hydra.core.config_store import ConfigStore

from flowdiff import registry
from flowdiff.config.arguments import quoted, without
from flowdiff.errors import ConfigurationError
from flowdiff.yaml_defaults import bringers, usual_option

# What the options of a group add besides what their constructors ask for.
ALSO_ADDED = {"flow": ("whitening",), "network": ("sampler",), "measurement": ("posterior",)}


def load_plugins(overrides: Iterable[str]) -> None:
    """Import the files that a `plugins=[…]` override names, and offer their components as config options.

    A plugin has no YAML file: the defaults of its constructor's keyword-only parameters are its settings.
    """
    paths = without(quoted([*overrides]), ["plugins"])[1].get("plugins")
    import_plugins(map(str, paths if isinstance(paths, list) else [paths] if paths else []))


def import_plugins(paths: Iterable[str]) -> None:
    """Import plugin files, and offer each component to Hydra as an option of its group."""
    for path in paths:
        for group, names in registry.import_plugin(path).items():
            for name in names:
                ConfigStore.instance().store(group=group, name=name, node=_plugin_node(path, group, name))


def _plugin_node(path: str, group: str, name: str) -> dict[str, Any]:
    component = registry.resolve(group, name)
    parameters = registry.hyperparameters(component)
    missing = [key for key, p in parameters.items() if p.default is p.empty]
    if missing:
        raise ConfigurationError(
            f"plugin {path}: {group} {name!r} has no default for {', '.join(missing)}: give every keyword-only "
            "parameter a default, because the defaults replace a YAML file."
        )
    # Like the YAML files of its group, it adds the groups that its constructor asks for, by their usual options.
    asked = {*registry.runtime_parameters(component), *ALSO_ADDED.get(group, ())}
    added = [{f"/{g}@_global_.{g}": usual_option(g)} for g in registry.GROUP_MODULES if g in asked and bringers(g)]
    return {"defaults": ["_self_", *added], "name": name, **{k: p.default for k, p in parameters.items()}}
