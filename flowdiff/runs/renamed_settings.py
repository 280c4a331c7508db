"""Settings that were renamed since runs exist. Old run folders are read in today's names, so that they still load.

A run id is the hash of the *first* names and values, so that neither a renaming nor a setting that is added later
changes the id of any run.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any, NamedTuple


class Renamed(NamedTuple):
    """A setting that has another key, other values, or both.

    Args:
        first: its first dotted key.
        now: its dotted key today.
        values: pairs of a first value and the value that means the same today; all other values are unchanged.
    """

    first: str
    now: str
    values: tuple[tuple[Any, Any], ...] = ()


NULL_IS_AUTO = ((None, "auto"),)
TRUE_IS_AUTO = ((True, "auto"),)  # the same numbers: where `auto` leaves something out, `true` is an error

RENAMED = (
    Renamed("metrics.ode", "metrics.ode.measure"),
    Renamed("metrics.ode_rtol", "metrics.ode.rtol"),
    Renamed("metrics.ode_atol", "metrics.ode.atol"),
    Renamed("metrics.ode_probes", "metrics.ode.probes"),
    Renamed("metrics.sigma_eval", "metrics.sigma_eval", NULL_IS_AUTO),
    Renamed("metrics.frechet", "metrics.frechet", TRUE_IS_AUTO),
    Renamed("metrics.classify", "metrics.classify", NULL_IS_AUTO),
    Renamed("metrics.outliers", "metrics.outliers", NULL_IS_AUTO),
    Renamed("metrics.interpolate", "metrics.interpolate", NULL_IS_AUTO),
)

# Settings that came later, with the value at which a run is what it was before them: it is no part of a run id, and it
# is the value of an old run, which does not have the setting.
ADDED = {
    "dataset.background": "white",
    "dataset.caption_template": None,
    "dataset.classes": None,
    "dataset.num_per_class": None,
    "loss.pairing": "independent",
    "loss.run": None,
    "loss.pairing_sigma": 0.002,
    "dataset.handwriting": "digits",
    "metrics.health": {
        **{"denoising": True, "levels": 16, "samples": 500},
        **{"eigenvalue": True, "trajectories": 4, "fokker_planck": True},
    },
    "adapter": {"name": "none"},
    "hint": {"name": "none"},
    "clip": False,
    "network.gate": False,
    "whitening.center": False,
    "network.components": 0,
    "start": "noise",
    "sigma_start": None,
    "guidance.flow_scale": 1.0,
    "guidance.order": "all",
    "loss.fokker_planck": 0.0,
    "loss.fokker_planck_share": 0.25,
    "loss.fokker_planck_every": 4,
    "conditioner.null_condition": "learned",
    "optimizer.final_lr": 0.0,
    "optimizer.t_ref": 1000,
    "accelerator.tf32": "auto",
    "accelerator.channels_last": False,
    "optimizer.ema": {"rampup": 0.0, "decays": [], "sigma_rel": [], "snapshots": 64},
}


class AddedGroup(NamedTuple):
    """A config group that an option brings only since runs exist.

    Args:
        group: the group of the option.
        name: the option.
        brings: the group that it brings.
        as_before: the node with which a run is what it was before.
    """

    group: str
    name: str
    brings: str
    as_before: Mapping[str, Any]


ADDED_GROUPS = (AddedGroup("loss", "nll", "weighting", {"name": "unit"}),)

_MISSING = object()


def in_current_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config of any version with today's names and values; the argument stays as it is."""
    current = _translated(config, RENAMED)
    for added in ADDED_GROUPS:
        if _has_option(current, added):
            current.setdefault(added.brings, dict(added.as_before))
    return current


def in_first_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with the first names and values of its settings, without added ones; the argument stays as it is."""
    first = _translated(
        config, [Renamed(now, first, tuple((b, a) for a, b in values)) for first, now, values in RENAMED]
    )
    for key, value in ADDED.items():
        group, _, setting = key.rpartition(".")
        node = first.get(group) if group else first
        if isinstance(node, MutableMapping) and setting in node and node[setting] == value:
            del node[setting]
    for added in ADDED_GROUPS:
        if _has_option(first, added) and first.get(added.brings) == added.as_before:
            del first[added.brings]
    return first


def _has_option(config: Mapping[str, Any], added: AddedGroup) -> bool:
    node = config.get(added.group)
    return isinstance(node, Mapping) and node.get("name") == added.name


def _translated(config: Mapping[str, Any], table: Iterable[Renamed]) -> dict[str, Any]:
    result: Any = copy.deepcopy(config)
    moved = {}
    for old, new, values in table:
        value = _pop(result, old.split("."))
        if value is not _MISSING:
            same = (b for a, b in values if type(a) is type(value) and a == value)
            moved[new] = next(same, value)
    for key, value in moved.items():
        *parents, last = key.split(".")
        node = result
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return result


def _pop(node: Any, path: list[str]) -> Any:
    """Remove and return the value at a path; _MISSING if there is none, or if it is itself a mapping of settings."""
    key, *rest = path
    if not isinstance(node, MutableMapping) or key not in node:
        return _MISSING
    if not rest:
        return _MISSING if isinstance(node[key], Mapping) else node.pop(key)
    value = _pop(node[key], rest)
    if value is not _MISSING and not node[key]:
        del node[key]  # its last setting has moved
    return value
