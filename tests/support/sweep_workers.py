"""What the tests of the local pool run in its processes: jobs that end in every way, without any training."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from flowdiff.errors import DataError
from flowdiff.runs.job import Job


def config(behaviour: str = "finish", seed: int = 0) -> dict:
    """The little of a config that launching looks at."""
    return {
        "seed": seed,
        "behaviour": behaviour,
        "trainer": {"max_steps": 10},
        "plugins": [],
        "accelerator": {"kind": "cpu", "devices": 1, "num_nodes": 1},
    }


def job(path: Path, behaviour: str = "finish", seed: int = 0) -> Job:
    """A job of the sweep `path.parent` that ends as `behaviour` says."""
    return Job(config(behaviour, seed), path, (f"behaviour={behaviour}", f"seed={seed}"), path.parent.name)


def work(job: Job) -> None:
    """The worker."""
    job.execute(train)


def train(config, folder, *, name, run_id, sweep, overrides) -> dict:
    """In place of flowdiff.training.train."""
    import torch

    folder.write_config(config)
    with (folder.path / "attempts").open("a") as file:
        file.write("x")
    behaviour = config["behaviour"]
    if behaviour == "sentence":
        raise DataError("the data is not there: put it there.")
    if behaviour == "bug":
        raise ZeroDivisionError("division by zero\nsecond line")
    if behaviour == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "mute":
        os._exit(1)
    if behaviour == "no_result":
        return {}
    if behaviour == "slow":
        (folder.path / "pid").write_text(str(os.getpid()))
        while not (folder.path.parent / "go").exists():
            time.sleep(0.05)
    result = {
        "name": name,
        "metrics": {"test_loss": float(config["seed"])},
        "pid": os.getpid(),
        "threads": torch.get_num_threads(),
        "omp": os.environ["OMP_NUM_THREADS"],
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
    }
    folder.write_result(result)
    return result
