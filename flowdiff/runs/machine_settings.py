"""Settings of the machine that a run is computed on: paths, caches, loader processes, hardware, logging.

They do not affect a run's numbers. So the run id ignores them, or hashes what a path means (HASHED_AS), and `resume=`
and sample.py accept other values for a run whose data, caches or other runs have moved.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

# What config.yaml keeps of its paths for the run id: {dotted key: what the id hashes in place of the absolute path}.
HASHED_AS = "hashed_as"
# Groups and top-level keys that the run id ignores.
NOT_IDENTITY = ("hydra", "resume", "force", "retry", "plugins", "tags", "logger", HASHED_AS)
# Settings of the other groups that the run id ignores.
NOT_IDENTITY_KEYS = {
    "dataset": ("root", "download", "num_workers"),
    "first_stage": ("cache_dir",),
    "conditioner": ("cache_dir",),
    "metrics": ("cache_dir",),
    "trainer": ("profiler", "benchmark"),
    "accelerator": ("name", "kind", "strategy", "compile", "channels_last"),  # but precision and devices count
}
# Paths of what a run reads, and folders of what it keeps to save time.
INPUTS = (
    *("dataset.path", "dataset.test_path", "dataset.root", "first_stage.run", "first_stage.model"),
    *("conditioner.model", "conditioner.text.model", "guidance.run", "guidance.inner.run", "metrics.inception_weights"),
    *("metrics.compare.clip_score.model", "adapter.run", "loss.run"),
)
CACHES = ("first_stage.cache_dir", "conditioner.cache_dir", "metrics.cache_dir")
# The settings of a run that may be given again where it is resumed or sampled.
MOVABLE = (*INPUTS, *CACHES, "dataset.num_workers", "dataset.download", "plugins")


def as_hashed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with what the run id hashes in place of its paths."""
    result: dict[str, Any] = copy.deepcopy(dict(config))
    hashed = result.pop(HASHED_AS, None)
    for key, value in hashed.items() if isinstance(hashed, Mapping) else ():
        set_value(result, key, value)
    return result


def get_value(config: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key; None if there is none."""
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def set_value(config: dict[str, Any], key: str, value: Any) -> None:
    """Set the value at a dotted key whose groups exist; a key without its group is ignored."""
    *parents, last = key.split(".")
    node: Any = config
    for parent in parents:
        node = node.get(parent)
        if not isinstance(node, dict):
            return
    node[last] = value
