"""Who a run is: a hash of everything that decides its numbers, and a readable name beside it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flowdiff.errors import RunError
from flowdiff.runs.run_folder import RunFolder

# What a run may change and still be the same run: where things lie, what is logged, what it runs on.
NOT_IDENTITY = ("hydra", "resume", "force", "retry", "plugins", "tags", "logger")
NOT_IDENTITY_KEYS = {
    "dataset": ("root", "download", "num_workers"),
    "first_stage": ("cache_dir",),
    "metrics": ("cache_dir",),
    "trainer": ("profiler", "benchmark"),
    "accelerator": ("name", "kind", "strategy", "compile"),  # but precision and the number of devices count
}


def run_id(config: Mapping[str, Any]) -> str:
    """Eight hex digits of the SHA-256 of a resolved config (plain containers), less paths, logging and hardware."""
    kept = {}
    for key, value in config.items():
        if key in NOT_IDENTITY:
            continue
        if key in NOT_IDENTITY_KEYS and isinstance(value, Mapping):
            value = {k: v for k, v in value.items() if k not in NOT_IDENTITY_KEYS[key]}
        if isinstance(value, Mapping) and value.get("run"):
            value = {**value, "run": _identity_of(value["run"])}
        kept[key] = value
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]


def _identity_of(run: str) -> str:
    """The identity of another run that this one stands on, wherever its folder lies; its path where there is none."""
    try:
        return run_id(RunFolder.open(run).config())
    except RunError:
        return run


def run_name(overrides: Iterable[str], sweep: str | None = None) -> str:
    """The overrides that matter, readable: "flow.n_flows=5 activation=elu"; "default" when there are none.

    An experiment that the sweep is named after is not repeated.
    """
    kept = [o for o in overrides if o.lstrip("+~").partition("=")[0].split(".")[0] not in NOT_IDENTITY]
    kept = [o for o in kept if o != f"experiment={sweep}"]
    return " ".join(kept) or "default"


def labels(sweep: Sequence[Sequence[str]]) -> list[str]:
    """What tells the jobs of a sweep apart: for each list of overrides, the name of those that not all lists share."""
    shared = set.intersection(*map(set, sweep)) if len(sweep) > 1 else set()
    return [run_name(o for o in overrides if o not in shared) for overrides in sweep]


def run_folder(name: str, identity: str) -> str:
    """A short folder name, "flow.n_flows-5__activation-elu-1a2b3c4d": the readable name, cut, then the identity."""
    return f"{slug(name)}-{identity}"


def sweep_name(overrides: Iterable[str], experiment: str | None) -> str:
    """The folder of a sweep: the experiment's name, or the keys that decide numbers among those of the command line."""
    if experiment:
        return experiment
    keys = {o.lstrip("+~").partition("=")[0].split("@")[0].replace("/", ".") for o in overrides} - {"seed"}
    return slug(" ".join(sorted(key for key in keys if key.split(".")[0] not in NOT_IDENTITY))) or "sweep"


def slug(name: str) -> str:
    """Letters, digits, dot, dash and underscore only: a path of these needs no quotes in a shell or an override."""
    words = [re.sub(r"[^A-Za-z0-9._-]+", "-", word).strip("-.") for word in name.split()]
    return "__".join(words)[:80].rstrip("-_.")
