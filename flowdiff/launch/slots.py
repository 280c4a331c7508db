"""How a sweep shares this machine: the GPUs and CPU threads of each run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flowdiff.errors import ConfigurationError

JOBS_PER_GPU = 2  # default of jobs_per_device: the small models of this project leave a GPU half idle


@dataclass(frozen=True)
class Slot:
    """The resources of one run: the GPUs that it sees (None on a CPU) and its number of CPU threads."""

    gpus: tuple[str, ...] | None
    threads: int


def slots(
    configs: Sequence[Mapping[str, Any]], jobs_per_device: int | None, gpus: Sequence[str], cores: int
) -> list[Slot]:
    """The slots for these runs. Their threads add up to at most the number of cores, unless there are more slots.

    Args:
        configs: the resolved configs of the runs.
        jobs_per_device: how many runs share a GPU, or the CPU, ≥ 1; None: JOBS_PER_GPU, or one run per core.
        gpus: the GPUs of this machine, as CUDA_VISIBLE_DEVICES names them.
        cores: number of CPU cores.

    Raises:
        ConfigurationError: this machine cannot run them, or jobs_per_device is not allowed.
    """
    if jobs_per_device is not None and (not isinstance(jobs_per_device, int) or jobs_per_device < 1):
        raise ConfigurationError(
            f"hydra.launcher.jobs_per_device={jobs_per_device} is not allowed: it must be an integer ≥ 1 or null."
        )
    wanted = [config["accelerator"] for config in configs]
    if any(node["num_nodes"] > 1 for node in wanted):
        raise ConfigurationError("accelerator.num_nodes > 1 needs several machines: set hydra/launcher=slurm.")
    if any(isinstance(node["devices"], list) for node in wanted):
        raise ConfigurationError(
            "accelerator.devices is a list of indices, but a sweep assigns the devices itself: give a number, and set "
            "CUDA_VISIBLE_DEVICES to restrict the sweep to some devices."
        )
    if all(node["kind"] == "cpu" for node in wanted):
        gpus = ()
    asked = [max(1, len(gpus)) if node["devices"] == "auto" else int(node["devices"]) for node in wanted]
    width = max(asked)  # devices per run
    if gpus and width > len(gpus):
        raise ConfigurationError(f"accelerator.devices={width} is more than the {len(gpus)} GPUs of this machine.")
    if gpus:
        groups = [tuple(gpus[i : i + width]) for i in range(0, len(gpus) - width + 1, width)]
        # The first runs go to different GPUs.
        assigned: list[tuple[str, ...] | None] = [*groups] * (jobs_per_device or (JOBS_PER_GPU if width == 1 else 1))
    else:
        assigned = [None] * (jobs_per_device or max(1, cores // width))
    assigned = assigned[: len(configs)]
    return [Slot(group, max(1, cores // (len(assigned) * width))) for group in assigned]


def visible_gpus() -> list[str]:
    """The GPUs this process may use, as CUDA_VISIBLE_DEVICES names them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip() not in ("", "-1")]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]
