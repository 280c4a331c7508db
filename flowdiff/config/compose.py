"""Composing a configuration from conf/ and overrides."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from flowdiff.config.arguments import quoted
from flowdiff.config.base_run import with_base
from flowdiff.config.class_count import with_class_count
from flowdiff.config.combinations import without_unused
from flowdiff.config.explain import hydra_errors, hydra_initialized, without_null_choices
from flowdiff.config.plugins import load_plugins
from flowdiff.errors import FlowdiffError
from flowdiff.runs import identity
from flowdiff.runs.moving import with_absolute_paths


def compose(overrides: Iterable[str] = (), config_name: str = "config") -> DictConfig:
    """The config of `python train.py <overrides>`; ConfigurationError if it cannot be composed."""
    overrides = without_null_choices(quoted([*overrides]))
    load_plugins(overrides)
    with hydra_errors(overrides, config_name), hydra_initialized():
        return hydra_compose(config_name, overrides)


def resolved(config: DictConfig) -> dict[str, Any]:
    """The config as plain containers, with all interpolations resolved and absolute paths, without Hydra's own node.

    Raises:
        ConfigurationError: the classes of the dataset have to be counted in its files and cannot be, or the
            architecture is not that of the run that is adapted.
        RunError: there is no run that is to be adapted.
    """
    return with_absolute_paths(with_class_count(with_base(_containers(config))))


def _containers(config: DictConfig) -> dict[str, Any]:
    # Each top-level value is resolved within the whole config, so that its ${…} find other keys.
    plain: dict[str, Any] = {
        key: OmegaConf.to_container(config[key], resolve=True) if OmegaConf.is_config(config[key]) else config[key]
        for key in map(str, config)
        if key != "hydra"
    }
    plain = without_unused(plain)
    if "plugins" in plain:  # absolute, so that the run can be loaded from any folder
        plain["plugins"] = [str(Path(path).expanduser().resolve()) for path in plain["plugins"]]
    return plain


def _identity_of(root: DictConfig) -> str:
    plain = _containers(root)
    with suppress(FlowdiffError):  # the command itself says what is wrong
        plain = with_class_count(with_base(plain))
    return identity.run_id(with_absolute_paths(plain))


def _run_folder(root: DictConfig) -> str:
    sweep = _sweep_name(root) if root.hydra.mode == RunMode.MULTIRUN else None
    return identity.run_folder(identity.run_name(root.hydra.overrides.task, sweep), _identity_of(root))


def _run_dir(root: DictConfig) -> str:
    if root.resume:
        return root.resume
    # A run is found by its identity, whatever its readable name was.
    there = sorted(Path("outputs").glob(f"*-{_identity_of(root)}"))
    further = [*(p for p in there if (p / "result.json").is_file()), *(p for p in there if any(p.glob("*/last.ckpt")))]
    return str(next(iter([*further, *there]), Path("outputs") / _run_folder(root)))


def _sweep_name(root: DictConfig) -> str:
    return identity.sweep_name(root.hydra.overrides.task, root.hydra.runtime.choices.get("experiment"))


def _if_score_flow(yes: Any, no: Any, root: DictConfig) -> Any:
    """`yes` with network=score_flow, otherwise `no`. While Hydra makes choices, the network is its name alone."""
    return yes if (root.network if isinstance(root.network, str) else root.network.name) == "score_flow" else no


OmegaConf.register_new_resolver(
    "if_score_flow", lambda yes, no, *, _root_: _if_score_flow(yes, no, _root_), replace=True
)
OmegaConf.register_new_resolver("run_id", lambda *, _root_: _identity_of(_root_), replace=True)
OmegaConf.register_new_resolver("run_folder", lambda *, _root_: _run_folder(_root_), replace=True)
OmegaConf.register_new_resolver("run_dir", lambda *, _root_: _run_dir(_root_), replace=True)
OmegaConf.register_new_resolver("sweep_name", lambda *, _root_: _sweep_name(_root_), replace=True)
