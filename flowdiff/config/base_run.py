"""`adapter.run=<run>`: what an adapted run takes over from the run whose model it adapts.

The architecture is that of the base, and so is the sampler unless another one than the default is given. What trains
the model, the loss, the noise levels, the optimiser and the data, is the run's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowdiff.config.of_run import of_run
from flowdiff.errors import ConfigurationError, RunError
from flowdiff.runs.run_folder import RunFolder
from flowdiff.yaml_defaults import base_choices, base_variables, bringers, defaults

ARCHITECTURE = ("network", "flow", "activation", "whitening", "scaling", "conditioner", "first_stage", "hint")
_MISSING = object()


def with_base(plain: dict[str, Any]) -> dict[str, Any]:
    """A config in plain containers with the architecture of the run that its adapter names.

    Raises:
        ConfigurationError: the adapter needs a run and has none, or the config names another architecture than the
            run's. An architecture that is the default counts as none.
        RunError: there is no such run.
    """
    node = plain.get("adapter")
    if not isinstance(node, Mapping) or "run" not in node:
        return plain
    name, run = node.get("name"), node["run"]
    if run is None:
        raise ConfigurationError(
            f"adapter={name} needs a run to adapt: give adapter.run=<run folder>, e.g. one below outputs/."
        )
    try:
        base = of_run(RunFolder.open(Path(str(run)).expanduser()))
    except RunError as error:
        raise RunError(f"adapter.run={run} cannot be adapted: {error}") from error
    result = {key: value for key, value in plain.items() if key not in (*ARCHITECTURE, "sampler")}
    for group in (*ARCHITECTURE, "sampler"):
        own, usual = plain.get(group), _usual(group)
        given = own is not None and own != usual
        if group == "sampler" and given:
            result[group] = own
            continue
        if given and own != base.get(group):
            raise ConfigurationError(_contradiction(group, own, base.get(group), str(run)))
        if group in base:
            result[group] = base[group]
    result["plugins"] = list(dict.fromkeys([*base["plugins"], *plain.get("plugins", [])]))
    return result


def _usual(group: str) -> dict[str, Any] | None:
    """The node of a group in the default configuration."""
    chosen = dict(base_choices("config"))
    while group not in chosen:
        option = next((added for other, name, added in bringers(group) if _chosen(chosen, other, name)), None)
        if option is None:
            return None
        chosen[group] = option
    option = str(chosen[group])
    if option.startswith("${"):
        option = base_variables("config")[option.strip("${}")]
    return defaults(group, option)


def _chosen(chosen: Mapping[str, str | None], group: str, name: str) -> bool:
    """Whether the default configuration has this option, itself or by another option that brings it."""
    if group in chosen:
        return chosen[group] == name
    usual = _usual(group)
    return usual is not None and usual["name"] == name


def _contradiction(group: str, own: Any, theirs: Any, run: str) -> str:
    remedy = f"the architecture is that of the base; leave {group} out, or give another run"
    if theirs is None or own.get("name") != theirs.get("name"):
        has = f"whose {group} is {theirs['name']}" if theirs is not None else f"which has no {group}"
        return f"{group}={own.get('name')} does not go with adapter.run={run}, {has}: {remedy}."
    key = next(key for key in dict.fromkeys([*own, *theirs]) if own.get(key, _MISSING) != theirs.get(key, _MISSING))
    return (
        f"{group}.{key}={own.get(key)} does not go with adapter.run={run}, whose {group}.{key} is "
        f"{theirs.get(key)}: {remedy}."
    )
