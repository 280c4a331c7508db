"""Jobs for the tests of launchers, which end in every way without any training, and the waiting for them."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flowdiff.errors import DataError
from flowdiff.launch.local import Worker
from flowdiff.launch.slurm.task import Limits
from flowdiff.runs.job import Job
from flowdiff.runs.ownership import LOCK_FILE, this_process

WORKER = Worker("sweep_workers", "work", ("torch",))
LIMITS = Limits(signal_delay_s=60, max_timeouts=2, max_kills=1)


def config(behaviour: str = "finish", seed: int = 0, **accelerator: Any) -> dict[str, Any]:
    """The part of a config that launchers read."""
    return {
        "seed": seed,
        "behaviour": behaviour,
        "trainer": {"max_steps": 10},
        "plugins": [],
        "accelerator": {"kind": "cpu", "devices": 1, "num_nodes": 1, **accelerator},
    }


def job(path: Path, behaviour: str = "finish", seed: int = 0, **accelerator: Any) -> Job:
    """A job of the sweep `path.parent` that behaves in this way (see `train`)."""
    overrides = (f"behaviour={behaviour}", f"seed={seed}")
    return Job(config(behaviour, seed, **accelerator), path, overrides, path.parent.name)


def jobs(sweep: Path, *behaviours: str, **accelerator: Any) -> tuple[Job, ...]:
    """Jobs of a sweep that behave in these ways, in folders named after their number."""
    return tuple(job(sweep / str(i), behaviour, i, **accelerator) for i, behaviour in enumerate(behaviours))


def work(job: Job) -> None:
    """The worker."""
    job.execute(train)


def train(config, folder, *, name, run_id, sweep, overrides) -> dict:
    """Takes the place of flowdiff.training.run.train."""
    import torch

    folder.write_config(config)
    with (folder.path / "attempts").open("a") as file:
        file.write("x")
    match config["behaviour"]:
        case "sentence":
            raise DataError("the data is missing: put it there.")
        case "bug":
            raise ZeroDivisionError("division by zero\nsecond line")
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "mute":
            os._exit(1)
        case "no_result":
            return {}
        case "slow":
            (folder.path / "pid").write_text(str(os.getpid()))
            wait_until((folder.path.parent / "go").exists, 600)
    result = {
        "name": name,
        "metrics": {"test_loss": float(config["seed"])},
        "pid": os.getpid(),
        "threads": torch.get_num_threads(),
        "omp": os.environ.get("OMP_NUM_THREADS"),
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
    }
    folder.write_result(result)
    return result


def wait_until(condition: Callable[[], object], seconds: float = 60.0, pause: float = 0.01) -> None:
    """Wait until the condition holds; fail after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(pause)


def sign_lock(folder: Path, **owner: object) -> None:
    """Write the lock file of a run folder as another process would; by default this process is its owner."""
    (folder / LOCK_FILE).write_text(json.dumps({**this_process(), **owner}))
