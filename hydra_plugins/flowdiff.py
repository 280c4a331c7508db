"""Hydra finds launchers and sweepers only in this namespace package; what they do is in flowdiff.cli.sweep."""

from __future__ import annotations

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class LocalLauncher(Launcher):
    """hydra/launcher=local: several processes on this machine."""

    def __init__(self, jobs_per_device: int | None):
        self.jobs_per_device = jobs_per_device

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context = hydra_context
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from flowdiff.cli.sweep import launch, local_pool

        return launch(self.context, self.config, job_overrides, local_pool(self.jobs_per_device))


class GridSweeper(BasicSweeper):
    """Hydra's own sweeper, less its check of the batch: the launchers check all jobs and name every offence."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        pass
