"""Pruning: a search ends a run early whose metric is worse than that of its other trials."""

from __future__ import annotations

import math

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from flowdiff.launch.search.study import OpenTrial
from flowdiff.runs.job import Pruned
from flowdiff.runs.run_folder import RunFolder


class Pruning(Callback):
    """Reports the metric of a trial at every validation except the last; raises Pruned where its study gives up."""

    def __init__(self, trial: OpenTrial):
        self.trial = trial

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        step = trainer.global_step
        if step >= trainer.max_steps:
            return
        value = trainer.callback_metrics.get(self.trial.metric)
        prune = trainer.is_global_zero and value is not None and self.trial.should_prune(step, float(value))
        if trainer.strategy.broadcast(prune):  # all ranks end at the same step
            raise Pruned(step, self.trial.metric, math.nan if value is None else float(value), self.trial.study)


def pruning(folder: RunFolder, run_id: str) -> list[Callback]:
    """The pruning of a run that is a trial of a search in its sweep folder; nothing for other runs."""
    trial = OpenTrial.find(folder.path.parent, run_id)
    return [] if trial is None else [Pruning(trial)]
