"""Stopping a run so that it can be resumed: a signal only sets a flag; the run saves and stops at the end of the batch.

The checkpoint is written under a temporary name and renamed, so that `last.ckpt` is always complete. It is renamed
after the step's validation has been logged: a run that is killed earlier resumes from the previous checkpoint and
repeats the validation.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from flowdiff.runs.job import Interrupted, Pruned
from flowdiff.runs.signals import EXIT_STOPPED, stop_signals, terminal_leaver
from flowdiff.training.divergence import Divergence, not_finite
from flowdiff.training.engine import Engine, log_interval


class ResumableCheckpoint(Callback):
    """Writes `last.ckpt` every `every_n_steps`, at the last step, and when Ctrl-C or a stop signal asks to stop.

    It reads the engine's sentinel before every save, every trainer.log_every_n_steps, and on a CPU, where reading is
    free, at every step. It raises Divergence if a loss, a gradient or, before a save, a weight is not finite.

    A second Ctrl-C stops at once, without saving. Its handlers stay until `handlers_restored` ends. The callback must
    come after the weight average in the list of callbacks, so that the saved average includes the saved step.

    Args:
        path: the checkpoint.
        every_n_steps: optimiser steps between two checkpoints, ≥ 1.
        resume_hint: the command that resumes the run, for messages.
        every_seconds: seconds of training after which it also writes, > 0; None: never.
    """

    def __init__(self, path: Path, every_n_steps: int, resume_hint: str, every_seconds: float | None = None):
        self.path = path
        self.every_n_steps = every_n_steps
        self.every_seconds = math.inf if every_seconds is None else every_seconds
        self.resume_hint = resume_hint
        self._asked: signal.Signals | None = None  # signal that this process received
        self._stopping: signal.Signals | None = None  # signal that all ranks stop for
        self._temporary = path.with_suffix(".tmp")
        self._saved: int | None = None  # step of the written checkpoint
        self._published: int | None = None  # step of last.ckpt
        self._resumed: int | None = None  # step that this session resumed from
        self._ended = False  # nothing is left to save
        self._since = time.monotonic()  # when it last saved, or the training started

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._resumed = trainer.global_step or None
        self._since = time.monotonic()
        owner = os.getpid()
        leave_terminal = terminal_leaver()

        def ask(number: int, frame: FrameType | None) -> None:
            if os.getpid() != owner:
                return  # a data worker, forked a moment ago
            if number == signal.SIGHUP:
                leave_terminal()
            if number == signal.SIGINT and (self._ended or self._asked is signal.SIGINT):
                raise KeyboardInterrupt
            if self._ended:
                sys.exit(EXIT_STOPPED)
            self._asked = signal.Signals(number)

        for number in (signal.SIGINT, *stop_signals()):
            signal.signal(number, ask)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # gradients are accumulating: a checkpoint here would lose them
        self._agree(trainer)
        waited = time.monotonic() - self._since >= self.every_seconds
        saving = self._stopping or waited or step % self.every_n_steps == 0 or step == trainer.max_steps
        if _reading_is_free(trainer) or (step % log_interval(trainer) == 0 and not saving):
            self._look(trainer, module)
        if saving:
            self.save(trainer, module)

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        # Not at the end of the previous batch: it is logged and validated only after all callbacks.
        self._publish(trainer)
        self._stop(trainer)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self._saved != trainer.global_step:
            self.save(trainer, module)  # trainer.max_time stopped the run
        self._publish(trainer)
        self._ended = True
        self._agree(trainer)
        self._stop(trainer)

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """A queue's SIGTERM also ends the process of a logger: a lost connection is then part of being stopped."""
        if isinstance(exception, ConnectionError):
            time.sleep(1)  # our own signal may arrive a little later
        self._ended = True
        if isinstance(exception, Pruned):
            self._publish(trainer)  # this step has been validated
        if isinstance(exception, ConnectionError) and self._asked:
            raise self._interruption(trainer) from exception

    def save(self, trainer: Trainer, module: LightningModule) -> None:
        """Write the checkpoint that will become last.ckpt; Divergence if a number is not finite."""
        self._look(trainer, module)
        if (name := not_finite(module)) is not None:
            raise self._divergence(f"after step {trainer.global_step:,}: {name} is not finite")
        try:
            trainer.save_checkpoint(self._temporary)
        except OSError:
            self._temporary.unlink(missing_ok=True)  # frees the disk
            raise
        self._saved = trainer.global_step
        self._since = time.monotonic()

    def _publish(self, trainer: Trainer) -> None:
        if self._published != self._saved and trainer.is_global_zero:
            os.replace(self._temporary, self.path)
        self._published = self._saved

    def _look(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, Engine)
        found = module.sentinel.found()
        if found is not None:
            raise self._divergence(f"at step {found.step:,}: {module.account(found)}")

    def _divergence(self, what: str) -> Divergence:
        good = self._published or self._resumed
        kept = f"The last good checkpoint is {self.path} (step {good:,})" if good else "There is no checkpoint yet"
        return Divergence(
            f"Training diverged {what}. {kept}: train from scratch with a lower optimizer.lr or "
            "trainer.gradient_clip_val."
        )

    def _agree(self, trainer: Trainer) -> None:
        """All ranks stop at the same step, whichever received the signal: a checkpoint needs all ranks."""
        if trainer.world_size == 1:
            self._stopping = self._asked
        elif trainer.strategy.reduce_boolean_decision(self._asked is not None, all=False):
            self._stopping = self._asked or signal.SIGTERM

    def _stop(self, trainer: Trainer) -> None:
        if self._stopping and self._saved == trainer.global_step:
            raise self._interruption(trainer)

    def _interruption(self, trainer: Trainer) -> Interrupted:
        asked = self._stopping or self._asked
        assert asked is not None
        return Interrupted(
            f"{asked.name} stopped the run after step {self._saved or 0:,} of {trainer.max_steps:,}; continue with: "
            f"{self.resume_hint}",
            asked,
        )


def _reading_is_free(trainer: Trainer) -> bool:
    """Whether a number can be read without waiting for a device."""
    return trainer.strategy.root_device.type == "cpu"
