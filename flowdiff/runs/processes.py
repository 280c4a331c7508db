"""The processes of one run: whether a launcher started this one as one of several, its rank, and their number.

A launcher tells each process its place by environment variables: torchrun, Lightning (which starts the further
processes of a run itself), and SLURM's srun. Variables may also be left over from an outer launcher, e.g. in a
notebook or a shell that torchrun started. So they count only if all variables of a launcher are there and agree with
each other, and only for a run that uses several devices.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from flowdiff.errors import ConfigurationError

log = logging.getLogger(__name__)

Launcher = Literal["none", "torchrun", "lightning", "srun"]

_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_LIGHTNING = ("NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_SRUN = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NODEID")
# What Lightning and torch take for the place of a process.
_PLACE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "LOCAL_WORLD_SIZE", "SLURM_PROCID")


class Place(NamedTuple):
    """The place of this process among those of its run.

    Args:
        launcher: what started the processes; none: this process is alone, or starts the others itself.
        rank: 0 … size − 1, except for Lightning's own processes on further machines, where it is only > 0.
        size: number of processes, ≥ 1.
        local_rank: its number among the processes of its machine, ≥ 0.
    """

    launcher: Launcher = "none"
    rank: int = 0
    size: int = 1
    local_rank: int = 0


def place() -> Place:
    """The place that the environment gives this process; incomplete or contradictory variables do not count."""
    if _complete(_TORCHRUN) and _number("RANK") < _number("WORLD_SIZE"):
        return Place("torchrun", _number("RANK"), _number("WORLD_SIZE"), max(0, _number("LOCAL_RANK")))
    if _complete(_LIGHTNING):
        local = max(0, _number("LOCAL_RANK"))
        return Place("lightning", _number("NODE_RANK") + local, _number("WORLD_SIZE"), local)
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")  # a shell, as Lightning has it too
    if _complete(_SRUN) and 1 < _number("SLURM_NTASKS") > _number("SLURM_PROCID") and not interactive:
        return Place("srun", _number("SLURM_PROCID"), _number("SLURM_NTASKS"), _number("SLURM_LOCALID"))
    return Place()


def is_first_rank() -> bool:
    """Whether this process is rank 0 of its run, the only one that writes."""
    return place().rank == 0


def forget_leftovers() -> None:
    """Remove the variables that give this process no place, with a warning: Lightning and torch would read them."""
    kept = {
        "torchrun": ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "LOCAL_WORLD_SIZE"),
        "lightning": ("LOCAL_RANK", "WORLD_SIZE", "NODE_RANK"),
        "srun": ("SLURM_PROCID",),
        "none": (),
    }[place().launcher]
    unusable = [key for key in ("MASTER_PORT", "SLURM_NTASKS") if key in os.environ and _number(key) < 0]
    _forget([*(key for key in _PLACE if key not in kept), *unusable])


def take_place(config: Mapping[str, Any]) -> None:
    """Prepare this process for a run: one that uses a single device is rank 0, whatever the environment says.

    Two processes that train the same single run do not write one folder: the second one finds it owned.

    Raises:
        ConfigurationError: torchrun started several processes of a run that uses a single device.
    """
    if not uses_one_process(config):
        return
    here = place()
    if "TORCHELASTIC_RUN_ID" in os.environ and here.launcher == "torchrun" and here.size > 1:
        raise ConfigurationError(
            f"torchrun started {here.size} processes, and this run uses one device: set accelerator=ddp "
            f"accelerator.devices={here.size}, or start it without torchrun."
        )
    _forget(_PLACE)


def uses_one_process(config: Mapping[str, Any]) -> bool:
    """Whether the accelerator of a resolved config asks for a single device; auto counts as several."""
    asked = config.get("accelerator") or {}
    devices, nodes = asked.get("devices", 1), asked.get("num_nodes", 1)
    return nodes == 1 and (devices == 1 or (isinstance(devices, list) and len(devices) == 1))


def _forget(keys: list[str] | tuple[str, ...]) -> None:
    found = {key: os.environ.pop(key) for key in keys if key in os.environ}
    told = [f"{key}={value}" for key, value in found.items() if key != "SLURM_PROCID"]  # every SLURM job has that one
    if told:
        log.warning("%s is ignored: no launcher started this process as one of several", " ".join(told))


def _complete(keys: tuple[str, ...]) -> bool:
    return all(os.environ.get(key) if key == "MASTER_ADDR" else _number(key) >= 0 for key in keys)


def _number(key: str) -> int:
    """The integer ≥ 0 in an environment variable; −1 if it is missing, empty or anything else."""
    value = os.environ.get(key, "")
    return int(value) if value.isascii() and value.isdigit() else -1
