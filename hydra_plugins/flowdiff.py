"""Hydra finds launchers and sweepers only in this namespace package; their code is in flowdiff/launch."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import partial
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, ListConfig


class LocalLauncher(Launcher):
    """hydra/launcher=local: several processes on this machine."""

    def __init__(self, jobs_per_device: int | None):
        self.jobs_per_device = jobs_per_device

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context = hydra_context
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from flowdiff.launch.sweep import launch, local_pool

        return launch(self.context, self.config, job_overrides, partial(local_pool, self.jobs_per_device))


class SlurmLauncher(Launcher):
    """hydra/launcher=slurm: one array job."""

    def __init__(self, **settings: Any):
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context = hydra_context
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from flowdiff.launch.sweep import launch, slurm_pool

        return launch(self.context, self.config, job_overrides, partial(slurm_pool, self.settings))


class GridSweeper(BasicSweeper):
    """Hydra's own sweeper, with cases beside its params.

    Each case is a set of overrides that belong together, written as after `python train.py`; the jobs are cases ×
    params. An override of the command line replaces that of the params and the cases.
    """

    def __init__(self, max_batch_size: int | None, params: DictConfig | None = None, cases: ListConfig | None = None):
        super().__init__(max_batch_size, params)
        self.cases = list(cases or [""])

    def sweep(self, arguments: list[str]) -> Any:
        from flowdiff.runs.files import removed_if_refused

        with removed_if_refused(self.config.hydra.sweep.dir, "multirun.yaml"):
            return super().sweep(arguments)

    def split_arguments(self, overrides: list[Override], max_batch_size: int | None) -> list[list[list[str]]]:
        parser = OverridesParser.create()
        jobs: list[list[str]] = []
        for case in self.cases:
            # Of two overrides of one key the later one counts: params and the command line stand behind the case.
            given = [*parser.parse_overrides(shlex.split(str(case))), *overrides]
            (grid,) = super().split_arguments(given, None)
            jobs += [job for job in grid if job not in jobs]
        return list(self.split_overrides_to_chunks(jobs, max_batch_size))

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Nothing to do: the launchers check all jobs and report every invalid one."""


class OptunaSweeper(Sweeper):
    """hydra/sweeper=optuna: choose the next values by the results of the earlier ones."""

    def __init__(self, params: DictConfig | None, **settings: Any):
        self.params = params or {}
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from hydra.core.plugins import Plugins

        self.context = hydra_context
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        from flowdiff.launch.search.sweeper import run
        from flowdiff.report.search_progress import draw, print_table

        params = [f"{key}={values}" for key, values in self.params.items()]
        run(self.context, self.config, self.launcher, self.settings, [*params, *arguments], print_table, draw)
