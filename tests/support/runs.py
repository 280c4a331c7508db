"""Tiny runs for the tests of training and of the command line."""

import os
from collections.abc import Callable
from pathlib import Path

import torch

from flowdiff import config
from flowdiff.runs import identity
from flowdiff.runs.run_folder import Label, RunFolder
from flowdiff.testing.inputs import perturb
from flowdiff.training import run as training
from flowdiff.training.engine import Engine

CHEAP = "flow=linear_activation"  # trains in half of the time that the default flow takes
# Toy data needs no feature extractor, and everything is small: a run takes a second or two.
TINY = [
    "dataset=two_moons",
    "dataset.num_train=256",
    "dataset.num_test=64",
    "dataset.batch_size=32",
    CHEAP,
    "trainer.max_steps=8",
    "trainer.log_every_n_steps=1",
    "metrics.every_n_steps=4",
    "metrics.num_samples=64",
    "metrics.periodic_num_samples=16",
    "sampler=heun",
    "sampler.num_steps=3",
    "logger=csv",
    "accelerator=cpu",
]
# TINY without the number of its steps.
ANY_STEPS = [override for override in TINY if not override.startswith(("trainer.max_steps", "metrics.every_n_steps"))]
TINY_DIGITS = [
    CHEAP,
    "trainer.max_steps=3",
    "metrics.frechet=false",
    "metrics.likelihood=false",
    "metrics.every_n_steps=2",
    "dataset.batch_size=16",
    "sampler=heun",
    "sampler.num_steps=2",
    "logger=csv",
    "accelerator=cpu",
]
# Without a conditioner.
TINY_CAPTIONED = [
    *("dataset=captioned_digits", "dataset.num_train=64", "dataset.num_test=16", "dataset.batch_size=8"),
    *("trainer.max_steps=4", "trainer.log_every_n_steps=1", "metrics.frechet=false", "metrics.every_n_steps=2"),
    *("metrics.health.samples=16", "sampler=heun", "sampler.num_steps=2", "logger=csv", "accelerator=cpu"),
    *("metrics.health.eigenvalue=false", "metrics.health.fokker_planck=false", "metrics.likelihood=false"),
]


def without_flow(overrides: list[str]) -> list[str]:
    """The same for another flow, or for a network that has none."""
    return [override for override in overrides if override != CHEAP]


def send(*numbers: int) -> Callable[..., None]:
    """A function that sends this process these signals, one after the other."""

    def happen(*args, **kwargs) -> None:
        for number in numbers:
            os.kill(os.getpid(), number)

    return happen


def settings(*overrides: str) -> dict:
    """The checked, resolved config of some overrides."""
    composed = config.compose(overrides)
    config.check(composed)
    return config.resolved(composed)


def train(folder: Path, *overrides: str) -> dict:
    """Train a run in `folder`; what result.json holds."""
    config_ = settings(*overrides)
    run_id = identity.run_id(config_)
    return training.train(
        config_, RunFolder(folder), name=identity.run_name(overrides), run_id=run_id, sweep=None, overrides=overrides
    )


def untrained(path: Path, *overrides: str) -> Path:
    """A complete run whose model has random weights, as if it were trained."""
    folder = RunFolder(path)
    folder.write_config(settings(*overrides))
    folder.write_label(Label("1a2b3c4d", " ".join(overrides), None, overrides))
    engine = Engine.of(folder.config())
    engine.measure()
    perturb(engine.denoiser, 0.1)
    torch.save({"state_dict": engine.state_dict(), "global_step": 7}, folder.checkpoint)
    about = {"parameters": engine.num_parameters, "steps": 7, "seconds": {"train": 2.0}, "device": "cpu"}
    metrics = {"test_loss": 0.25, "bpd": float("nan")}
    named = {"run_id": "1a2b3c4d", "name": "mine", "overrides": list(overrides)}
    folder.write_result({**named, "metrics": metrics, **about})
    return folder.path
