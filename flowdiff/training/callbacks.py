"""Callbacks of a training: stopwatch, number of CPU threads, averages, progress bar, evaluation at every validation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from rich.progress import Progress
from safetensors.torch import save_file
from torch import Tensor

from flowdiff.evaluation.obedience import obedience
from flowdiff.evaluation.pictures.drawing import PICTURE_SEED, draw_reconstructions, draw_samples
from flowdiff.loggers.base import Tracker
from flowdiff.progress import bar
from flowdiff.runs.files import whole
from flowdiff.runs.run_folder import RunFolder
from flowdiff.training.assembly import RunParts
from flowdiff.training.averages import Power, Profile, Snapshot, snapshot_name
from flowdiff.training.threads import Threads

REFRESH = 20  # steps between two updates of the bar: reading the loss makes a GPU wait


class Stopwatch(Callback):
    """Seconds of training, without evaluation, summed over all sessions of a run."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since: float | None = None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._since = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._stop()

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._since = time.perf_counter()

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._stop()

    def state_dict(self) -> dict[str, float]:
        self._stop()
        self._since = time.perf_counter()
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.seconds = state_dict["seconds"]

    def _stop(self) -> None:
        if self._since is not None:
            self.seconds += time.perf_counter() - self._since
            self._since = None


class ThreadAdaptation(Callback):
    """Adapts the number of CPU threads to the load of the machine while a run trains.

    Args:
        threads: what chooses it.
    """

    def __init__(self, threads: Threads):
        self.threads = threads

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.threads.adapt()


class TrackedAverages(Callback):
    """Further averages of the trained weights; snapshots of the power-function averages are kept at intervals.

    A checkpoint holds them all. It must come before the callback that writes the checkpoints.

    Args:
        profiles: what is averaged, each with a name of its own.
        folder: where the snapshots are written.
        every: optimiser steps between two snapshots, ≥ 1.
    """

    def __init__(self, profiles: Sequence[Profile], folder: Path, every: int):
        self.profiles = profiles
        self.folder = folder
        self.every = every
        self._step = 0
        self._averages: dict[str, dict[str, Tensor]] = {}

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        for average in self._averages.values():  # of a checkpoint, which is read on the CPU
            average.update({name: value.to(module.device) for name, value in average.items()})

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._step:
            return  # gradients are accumulating
        self._step = step
        weights = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
        for profile in self.profiles:
            average = self._averages.get(profile.name)
            if average is None:
                self._averages[profile.name] = {name: value.clone() for name, value in weights.items()}
            else:
                torch._foreach_lerp_([*average.values()], [weights[name] for name in average], 1 - profile.beta(step))
        if (step % self.every == 0 or step == trainer.max_steps) and trainer.is_global_zero:
            self._keep(step)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step, "averages": self._averages}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._step, self._averages = state_dict["step"], state_dict["averages"]

    def _keep(self, step: int) -> None:
        """Write the power averages of a step."""
        self.folder.mkdir(exist_ok=True)
        for profile in self.profiles:
            if isinstance(profile, Power):
                values = {name: value.cpu().contiguous() for name, value in self._averages[profile.name].items()}
                with whole(self.folder / snapshot_name(Snapshot(profile.sigma_rel, step))) as path:
                    save_file(values, path)


class TrainingBar(Callback):
    """Progress bar: steps done, loss, steps per second and time left."""

    def __init__(self) -> None:
        self._bar: Progress | None = None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.is_global_zero:
            self._bar = bar("{task.fields[loss]}", "{task.fields[speed]}")
            self._task = self._bar.add_task(
                "training", total=trainer.max_steps, completed=trainer.global_step, loss="", speed=""
            )
            self._bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._bar is not None and (trainer.global_step % REFRESH == 0 or trainer.global_step == trainer.max_steps):
            speed = self._bar.tasks[0].speed
            self._bar.update(
                self._task,
                completed=trainer.global_step,
                loss=f"loss {float(outputs['loss']):.4f}",
                speed=f"{speed:.0f} steps/s" if speed else "",
            )

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class PeriodicEvaluation(Callback):
    """At every validation: a Fréchet distance on few samples and a sample picture, with the averaged weights.

    It must come before the weight average in the list of callbacks, which restores the trained weights when it ends.
    """

    def __init__(self, parts: RunParts, folder: RunFolder, tracker: Tracker):
        self.parts = parts
        self.folder = folder
        self.tracker = tracker

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.is_global_zero or trainer.global_step >= trainer.max_steps:
            return  # the last step is evaluated in full after training
        model, data, metrics = self.parts.denoiser, self.parts.data, self.parts.metrics
        if metrics.with_frechet:
            samples = model.sample(metrics.periodic_num_samples, seed=PICTURE_SEED, batch_size=metrics.batch_size)
            distances = metrics.frechet(samples)
            self.tracker.minimise(distances)
            module.log_dict(distances, rank_zero_only=True)
        if obeyed := obedience(model, metrics.periodic_num_samples, PICTURE_SEED, batch_size=metrics.batch_size):
            module.log_dict(obeyed, rank_zero_only=True)
        if not model.can_sample:
            return
        drawn = {"samples": self.folder.samples}
        draw_samples(model, data, self.folder.samples, metrics.batch_size)
        if model.is_autoencoder:
            drawn["reconstructions"] = self.folder.reconstructions
            draw_reconstructions(model, data, self.folder.reconstructions, metrics.batch_size)
        self.tracker.pictures(drawn, trainer.global_step)
