"""The options of every config group and their default settings, read from conf/. Nothing here imports torch."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from flowdiff.errors import ConfigurationError, nearest

_PACKAGE = Path(__file__).resolve().parent
# A wheel holds conf/ inside the package; in a checkout (pip install -e .) it lies beside the package.
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"


def defaults(group: str, name: str, variables: bool = True) -> dict[str, Any]:
    """The settings in conf/<group>/<name>.yaml, or the defaults of a plugin's constructor.

    variables: whether environment variables count, as in ${oc.env:FLOWDIFF_DATA,data}; otherwise each counts as unset.
    """
    node = _node(group, name)
    inherited = [entry for entry in node.pop("defaults", []) if isinstance(entry, str) and entry != "_self_"]
    if not variables:
        node = {key: _without_variables(value) for key, value in node.items()}
    return plain_node(
        OmegaConf.merge(*(defaults(group, name, variables) for name in inherited), plain_node(OmegaConf.create(node)))
    )


def options(group: str) -> list[str]:
    """The names that can stand behind `<group>=`."""
    stored = ConfigStore.instance().repo.get(group, {})
    return sorted({p.stem for p in (CONF / group).glob("*.yaml")} | {name.removesuffix(".yaml") for name in stored})


def config_groups() -> set[str]:
    """The config groups: the folders of conf/."""
    return {path.name for path in CONF.iterdir() if path.is_dir()}


@cache
def base_choices(config_name: str) -> dict[str, str | None]:
    """{group: option} of the defaults list of conf/<config_name>.yaml; None where no option is chosen.

    `optional default_flow` is no group, but a choice that `${default_flow}` of network/score_flow.yaml reads.
    """
    entries = plain_node(OmegaConf.load(CONF / f"{config_name}.yaml"), resolve=False)["defaults"]
    chosen = {group: option for entry in entries if isinstance(entry, dict) for group, option in entry.items()}
    return {group: option for group, option in chosen.items() if not group.startswith(("override ", "optional "))}


@cache
def base_variables(config_name: str) -> dict[str, str]:
    """{name: value} of the choices of conf/<config_name>.yaml that are no groups; `${name}` elsewhere reads them."""
    entries = plain_node(OmegaConf.load(CONF / f"{config_name}.yaml"), resolve=False)["defaults"]
    chosen = {group: option for entry in entries if isinstance(entry, dict) for group, option in entry.items()}
    return {key.removeprefix("optional "): value for key, value in chosen.items() if key.startswith("optional ")}


@cache
def base_keys(config_name: str) -> tuple[str, ...]:
    """The top-level settings of conf/<config_name>.yaml that are not config groups."""
    node = plain_node(OmegaConf.load(CONF / f"{config_name}.yaml"), resolve=False)
    return tuple(key for key in node if key not in ("defaults", "hydra"))


def bringers(group: str) -> list[tuple[str, str, str]]:
    """Which options add `group` to a config: (their group, their name, the option of `group` that they add)."""
    key = f"/{group}@_global_.{group}"
    return [(other, name, added[key]) for other, name, added in _additions() if key in added]


@cache
def _additions() -> list[tuple[str, str, dict[str, str]]]:
    """The options that add groups to a config: (their group, their name, {/group@_global_.group: option})."""
    found = []
    for path in sorted(CONF.glob("*/*.yaml")):
        text = path.read_text(encoding="utf-8")
        if "@_global_." in text:  # parsing all files takes seconds
            entries = plain_node(OmegaConf.create(text), resolve=False)["defaults"]
            added = {key: option for entry in entries if isinstance(entry, dict) for key, option in entry.items()}
            found.append((path.parent.name, path.stem, added))
    return found


def usual_option(group: str) -> str:
    """The option of `group` that most options add which add one."""
    return Counter(option for _, _, option in bringers(group)).most_common(1)[0][0]


def _without_variables(value: Any) -> Any:
    return re.sub(r"\$\{oc\.env:\w+,'?([^'}]*)'?\}", r"\1", value) if isinstance(value, str) else value


def _node(group: str, name: str) -> dict[str, Any]:
    path = CONF / group / f"{name}.yaml"
    if path.is_file():
        return plain_node(OmegaConf.load(path), resolve=False)
    stored = ConfigStore.instance().repo.get(group, {}).get(f"{name}.yaml")
    if stored is None:
        raise ConfigurationError(f"{group}={name} is unknown: {nearest(name, options(group))}.")
    return plain_node(OmegaConf.create(stored.node), resolve=False)


def plain_node(node: Any, resolve: bool = True) -> dict[str, Any]:
    """A config node as plain containers with text keys."""
    plain = OmegaConf.to_container(node, resolve=resolve)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}
