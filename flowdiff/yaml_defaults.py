"""The options of every config group and their default settings, read from conf/; no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from flowdiff.errors import ConfigurationError, nearest

_PACKAGE = Path(__file__).resolve().parent


# Installed from a wheel, conf/ lies inside the package; in a checkout (pip install -e .), beside it.
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"


def defaults(group: str, name: str) -> dict[str, Any]:
    """The settings in conf/<group>/<name>.yaml, or those of a plugin's constructor."""
    path = CONF / group / f"{name}.yaml"
    if path.is_file():
        node = OmegaConf.load(path)
    else:
        stored = ConfigStore.instance().repo.get(group, {}).get(f"{name}.yaml")
        if stored is None:
            raise ConfigurationError(f"{group}={name} is unknown: {nearest(name, options(group))}.")
        node = OmegaConf.create(stored.node)
    inherited = [entry for entry in node.pop("defaults", []) if isinstance(entry, str) and entry != "_self_"]
    settings = OmegaConf.to_container(node, resolve=True)
    return OmegaConf.to_container(OmegaConf.merge(*(defaults(group, name) for name in inherited), settings))


def options(group: str) -> list[str]:
    """The names that can stand behind `<group>=`."""
    stored = ConfigStore.instance().repo.get(group, {})
    return sorted({p.stem for p in (CONF / group).glob("*.yaml")} | {name.removesuffix(".yaml") for name in stored})
