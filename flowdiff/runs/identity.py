"""Run ids, run names and folder names: a hash of everything that affects a run's numbers, and readable names."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flowdiff.errors import RunError
from flowdiff.runs.renamed_settings import in_first_names
from flowdiff.runs.run_folder import RunFolder

# Config keys that do not affect a run's numbers: paths, logging, hardware.
NOT_IDENTITY = ("hydra", "resume", "force", "retry", "plugins", "tags", "logger")
NOT_IDENTITY_KEYS = {
    "dataset": ("root", "download", "num_workers"),
    "first_stage": ("cache_dir",),
    "metrics": ("cache_dir",),
    "trainer": ("profiler", "benchmark"),
    "accelerator": ("name", "kind", "strategy", "compile"),  # but precision and the number of devices count
}


def run_id(config: Mapping[str, Any]) -> str:
    """Eight hex digits of the SHA-256 of a resolved config (plain containers) without paths, logging and hardware."""
    kept = {}
    for key, value in in_first_names(config).items():
        if key in NOT_IDENTITY:
            continue
        if key in NOT_IDENTITY_KEYS and isinstance(value, Mapping):
            value = {k: v for k, v in value.items() if k not in NOT_IDENTITY_KEYS[key]}
        if isinstance(value, Mapping) and value.get("run"):
            value = {**value, "run": _identity_of(value["run"])}
        kept[key] = value
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]


def _identity_of(run: str) -> str:
    """The run id of another run that this one uses, wherever its folder is; its path if there is no such folder."""
    try:
        return run_id(RunFolder.open(run).config())
    except RunError:
        return run


def run_name(overrides: Iterable[str], sweep: str | None = None) -> str:
    """The overrides that affect numbers, e.g. "flow.n_flows=5 activation=elu"; "default" when there are none.

    The experiment is left out when the sweep is named after it.
    """
    kept = [o for o in overrides if o.lstrip("+~").partition("=")[0].split(".")[0] not in NOT_IDENTITY]
    kept = [o for o in kept if o != f"experiment={sweep}"]
    return " ".join(kept) or "default"


def labels(sweep: Sequence[Sequence[str]]) -> list[str]:
    """A short name for each job of a sweep: the overrides that it does not share with all the others."""
    shared = set.intersection(*map(set, sweep)) if len(sweep) > 1 else set()
    return [run_name(o for o in overrides if o not in shared) for overrides in sweep]


def run_folder(name: str, identity: str) -> str:
    """A short folder name, e.g. "flow.n_flows-5__activation-elu-1a2b3c4d": the name, shortened, then the run id."""
    return f"{slug(name)}-{identity}"


def sweep_name(overrides: Iterable[str], experiment: str | None) -> str:
    """The folder name of a sweep: the experiment, or the keys on the command line that affect numbers."""
    if experiment:
        return experiment
    keys = {o.lstrip("+~").partition("=")[0].split("@")[0].replace("/", ".") for o in overrides} - {"seed"}
    return slug(" ".join(sorted(key for key in keys if key.split(".")[0] not in NOT_IDENTITY))) or "sweep"


def slug(name: str) -> str:
    """Reduce a name to letters, digits, dots, dashes and underscores, which need no quotes in a shell or override."""
    words = [re.sub(r"[^A-Za-z0-9._-]+", "-", word).strip("-.") for word in name.split()]
    return "__".join(words)[:80].rstrip("-_.")
