"""A user's own components: their files are imported and their defaults offered to Hydra as options."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException

from flowdiff import registry
from flowdiff.config.explain import explain
from flowdiff.errors import ConfigurationError

# The options that a plugin's flow, network or loss brings along when its constructor asks for one of these groups.
PLUGIN_BRINGS = {"flow": "linear_activation", "activation": "swish", "whitening": "isotropic", "weighting": "edm"}


def load_plugins(overrides: Iterable[str]) -> None:
    """Import the files named by a `plugins=[…]` override and offer their components as config options.

    A plugin has no YAML: the keyword-only parameters of its constructor, with their defaults, take its place.
    """
    for override in overrides:
        if override.startswith("plugins="):
            try:
                paths = OverridesParser.create().parse_override(override).value()
            except OverrideParseException as error:
                raise ConfigurationError(explain(error, [override])) from error
            import_plugins(paths if isinstance(paths, list) else [paths])


def import_plugins(paths: Iterable[str]) -> None:
    """Import plugin files, and offer each component's defaults to Hydra as an option of its group."""
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
            "parameter one, the defaults stand in for a YAML file."
        )
    # As the YAML files of its group do, it brings the groups that its constructor asks for.
    wanted = {*registry.runtime_parameters(component), *(["whitening"] if group == "flow" else [])}
    brought = [{f"/{g}@_global_.{g}": option} for g, option in PLUGIN_BRINGS.items() if g in wanted]
    return {"defaults": ["_self_", *brought], "name": name, **{k: p.default for k, p in parameters.items()}}
