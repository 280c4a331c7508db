"""The progress bar of training."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from rich.progress import Progress

from flowdiff.progress import bar

REFRESH = 20  # steps between two updates: reading the loss makes a GPU wait


class TrainingBar(Callback):
    """Steps done of trainer.max_steps, loss, steps per second and time left."""

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
