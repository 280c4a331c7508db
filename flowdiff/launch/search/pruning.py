"""Ending a run early that a search no longer believes in."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from flowdiff.launch.search.study import OpenTrial
from flowdiff.runs.job import Pruned
from flowdiff.runs.run_folder import RunFolder


class Pruning(Callback):
    """Reports a trial's metric at every validation but the last; raises Pruned where its study sees no hope."""

    def __init__(self, trial: OpenTrial):
        self.trial = trial

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        step = trainer.global_step
        if step >= trainer.max_steps:
            return
        value = trainer.callback_metrics.get(self.trial.metric)
        hopeless = trainer.is_global_zero and value is not None and self.trial.is_hopeless(step, float(value))
        if trainer.strategy.broadcast(hopeless):  # all ranks end at the same step
            raise Pruned(step, self.trial.metric, float("nan") if value is None else float(value), self.trial.study)


def pruning(folder: RunFolder, run_id: str) -> list[Callback]:
    """What a run needs as a trial of a search in its sweep folder; nothing when it is none."""
    trial = OpenTrial.of(folder.path.parent, run_id)
    return [] if trial is None else [Pruning(trial)]
