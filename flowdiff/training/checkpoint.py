"""Stopping a run so that it can go on: a signal only sets a flag, and the end of the batch saves and stops.

The checkpoint is written to a temporary name and renamed, so `last.ckpt` is always whole. It is renamed when the step's
validation is done and logged: a run that is killed before goes on from the one before, and leaves nothing out.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from flowdiff.runs.job import Interrupted, Pruned
from flowdiff.runs.signals import STOP_SIGNALS
from flowdiff.training.divergence import Divergence, not_finite


class ResumableCheckpoint(Callback):
    """Keeps `last.ckpt`: every `every_n_steps`, at the last step, and when SIGINT, SIGTERM or SIGUSR2 asks to stop.

    Asks the module's sentinel before every save, every trainer.log_every_n_steps, and on a CPU, where asking costs
    nothing, at every step: raises Divergence when a loss, a gradient or, before a save, a weight is not finite.

    A second Ctrl-C stops at once, without saving. Must stand behind the weight average in the list of callbacks, so
    that a saved average has seen the saved step.
    """

    def __init__(self, path: Path, every_n_steps: int, resume_hint: str):
        self.path = path
        self.every_n_steps = every_n_steps
        self.resume_hint = resume_hint
        self._asked: signal.Signals | None = None  # by a signal to this process
        self._stopping: signal.Signals | None = None  # as all ranks have agreed
        self._temporary = path.with_suffix(".tmp")
        self._saved: int | None = None  # the step of the checkpoint that was written
        self._published: int | None = None  # and of the one that is in place
        self._resumed: int | None = None  # the step that was gone on from
        self._handlers: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._resumed = trainer.global_step or None
        owner = os.getpid()

        def ask(number: int, frame: FrameType | None) -> None:
            if os.getpid() != owner:
                return  # a data worker, forked a moment ago
            if self._asked is signal.SIGINT and number == signal.SIGINT:
                raise KeyboardInterrupt
            self._asked = signal.Signals(number)

        for number in (signal.SIGINT, *STOP_SIGNALS):
            self._handlers[number] = signal.signal(number, ask)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # gradients are half accumulated: a checkpoint here would lose them
        self._agree(trainer)
        saving = self._stopping or step % self.every_n_steps == 0 or step == trainer.max_steps
        if _asking_is_free(trainer) or (step % trainer.log_every_n_steps == 0 and not saving):
            self._look(trainer, module)
        if saving:
            self.save(trainer, module)

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        # Not at the end of the batch before: its numbers are logged, and it is validated, after all callbacks.
        self._publish(trainer)
        self._stop(trainer)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self._saved != trainer.global_step:
            self.save(trainer, module)  # stopped by trainer.max_time
        self._publish(trainer)
        self._agree(trainer)
        self._stop(trainer)

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """A queue's SIGTERM ends a logger's own process at once: losing touch with that is part of being stopped."""
        if isinstance(exception, ConnectionError):
            time.sleep(1)  # our signal may still be on its way
        self._give_back()
        if isinstance(exception, Pruned):
            self._publish(trainer)  # it was validated at this step
        if isinstance(exception, ConnectionError) and self._asked:
            raise self._interruption(trainer) from exception

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def save(self, trainer: Trainer, module: LightningModule) -> None:
        """Write what will be last.ckpt; raises Divergence instead of keeping what is not finite."""
        self._look(trainer, module)
        if (name := not_finite(module)) is not None:
            raise self._divergence(f"after step {trainer.global_step:,}: {name} is not finite")
        try:
            trainer.save_checkpoint(self._temporary)
        except OSError:
            self._temporary.unlink(missing_ok=True)  # gives the room back
            raise
        self._saved = trainer.global_step

    def _publish(self, trainer: Trainer) -> None:
        if self._published != self._saved and trainer.is_global_zero:
            os.replace(self._temporary, self.path)
        self._published = self._saved

    def _look(self, trainer: Trainer, module: LightningModule) -> None:
        found = module.sentinel.found()
        if found is not None:
            raise self._divergence(f"at step {found.step:,}: {module.account(found)}")

    def _divergence(self, what: str) -> Divergence:
        good = self._published or self._resumed
        kept = f"The last good checkpoint is {self.path} (step {good:,})" if good else "There is no checkpoint yet"
        return Divergence(
            f"Training diverged {what}. {kept}: train anew with a lower optimizer.lr or trainer.gradient_clip_val."
        )

    def _agree(self, trainer: Trainer) -> None:
        """All ranks stop at the same step, whichever was asked: a checkpoint needs every one of them."""
        if trainer.world_size == 1:
            self._stopping = self._asked
        elif trainer.strategy.reduce_boolean_decision(self._asked is not None, all=False):
            self._stopping = self._asked or signal.SIGTERM

    def _stop(self, trainer: Trainer) -> None:
        if self._stopping and self._saved == trainer.global_step:
            raise self._interruption(trainer)

    def _interruption(self, trainer: Trainer) -> Interrupted:
        name = (self._stopping or self._asked).name
        return Interrupted(
            f"{name} stopped the run after step {self._saved or 0:,} of {trainer.max_steps:,}; go on with: "
            f"{self.resume_hint}"
        )


def _asking_is_free(trainer: Trainer) -> bool:
    """Whether a number can be looked at without making a device wait for it."""
    return trainer.strategy.root_device.type == "cpu"
