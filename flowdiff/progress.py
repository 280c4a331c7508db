"""Progress bars: one for training, one for anything that counts samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

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


def bar(*columns: str) -> Progress:
    """A rich progress bar with the given text columns at its end."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        *(TextColumn(column) for column in columns),
        refresh_per_second=2,  # drawing takes the interpreter from the training step
    )


@contextmanager
def counting(description: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for a loop that reports (done, in all); it appears with the first report."""
    progress = bar()
    task = progress.add_task(description, total=None)

    def report(done: int, total: int) -> None:
        progress.start()
        progress.update(task, completed=done, total=total)

    try:
        yield report
    finally:
        progress.stop()
