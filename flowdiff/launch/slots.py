"""Where the jobs of a sweep run on this machine: which devices and how many threads each gets."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowdiff.errors import ConfigurationError

JOBS_PER_GPU = 2  # unless jobs_per_device says otherwise: the small models of this project leave a GPU half idle


@dataclass(frozen=True)
class Slot:
    """Room for one run at a time: the GPUs it sees (None on a machine without) and its CPU threads."""

    gpus: tuple[str, ...] | None
    threads: int


def slots(
    configs: Sequence[Mapping[str, Any]], jobs_per_device: int | None, gpus: Sequence[str], cores: int
) -> list[Slot]:
    """The slots for these runs; together they take no more threads than there are cores, as long as that is possible.

    Runs on GPUs share each one among `jobs_per_device`, runs on the CPU take one core each (jobs_per_device of them,
    with the cores divided, when given). Raises ConfigurationError for runs that this machine cannot hold.
    """
    if jobs_per_device is not None and (not isinstance(jobs_per_device, int) or jobs_per_device < 1):
        raise ConfigurationError(
            f"hydra.launcher.jobs_per_device={jobs_per_device} is not allowed: it must be an integer ≥ 1 or null."
        )
    wanted = [config["accelerator"] for config in configs]
    if any(node["num_nodes"] > 1 for node in wanted):
        raise ConfigurationError("accelerator.num_nodes > 1 needs several machines: take hydra/launcher=slurm.")
    if any(isinstance(node["devices"], list) for node in wanted):
        raise ConfigurationError(
            "accelerator.devices is a list of indices, and a sweep gives out the devices itself: take a number, and "
            "set CUDA_VISIBLE_DEVICES to keep the sweep to some of them."
        )
    if all(node["kind"] == "cpu" for node in wanted):
        gpus = ()
    width = max(_processes(node["devices"], len(gpus)) for node in wanted)  # devices that one run takes
    if gpus and width > len(gpus):
        raise ConfigurationError(f"accelerator.devices={width} is more than the {len(gpus)} GPUs of this machine.")
    if gpus:
        groups = [tuple(gpus[i : i + width]) for i in range(0, len(gpus) - width + 1, width)]
        # The first runs go to different GPUs.
        places: list[tuple[str, ...] | None] = [*groups] * (jobs_per_device or (JOBS_PER_GPU if width == 1 else 1))
    else:
        places = [None] * (jobs_per_device or max(1, cores // width))
    places = places[: len(configs)]
    return [Slot(place, max(1, cores // (len(places) * width))) for place in places]


def visible_gpus() -> list[str]:
    """The GPUs this process may use, as CUDA_VISIBLE_DEVICES names them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip() not in ("", "-1")]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


def available_cores() -> int:
    """The cores this process may use: its affinity, a container's quota or a SLURM task's share, whichever is least."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = min(cores, int(os.environ.get("SLURM_CPUS_PER_TASK", cores)))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroup v2, or no quota: "max"
        return cores


def _processes(devices: int | str, gpus: int) -> int:
    return max(1, gpus) if devices == "auto" else int(devices)
