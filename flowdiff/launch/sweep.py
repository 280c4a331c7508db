"""From Hydra's list of overrides to finished runs: compose and check all jobs, then pass them to a pool."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from flowdiff import config
from flowdiff.errors import ConfigurationError, FlowdiffError, RunError
from flowdiff.launch.board import Row
from flowdiff.launch.local import LocalPool, Worker
from flowdiff.launch.preflight import compose_all
from flowdiff.launch.slurm.pool import Settings, SlurmPool
from flowdiff.runs.identity import labels, run_id
from flowdiff.runs.job import Job, Retry, checked_retry, sentence
from flowdiff.runs.run_folder import RunFolder

WORKER = Worker("flowdiff.launch.worker", "work", preload=("sklearn.datasets", "matplotlib.pyplot"))
WAITING = ("queued", "running")  # states of a run that continues without this process


class FailedJob(JobReturn):
    """A failed job: like Hydra's, but without its own line on stderr before the error."""

    @property  # type: ignore[misc]  # JobReturn's can be set, which nobody does with a failed one
    def return_value(self) -> Any:
        raise self._return_value


class Pool(Protocol):
    """Runs jobs: on this machine or in a queue."""

    def environment(self) -> AbstractContextManager[None]:
        """The environment variables in which a sweep is composed and started."""

    def prepare(self) -> None:
        """Start what takes time while the jobs are still being composed."""

    def checkable_config(self, config: dict[str, Any]) -> dict[str, Any]:
        """The config as it can be checked on this machine."""

    def run(self, jobs: Sequence[Job], retry: Retry, force: bool) -> list[Row]:
        """Run them; one row for each, queued or running only if it continues without this process."""


def local_pool(jobs_per_device: int | None) -> LocalPool:
    """The pool behind hydra/launcher=local."""
    return LocalPool(WORKER, jobs_per_device, record_session=True)


def slurm_pool(settings: Mapping[str, Any]) -> SlurmPool:
    """The pool behind hydra/launcher=slurm."""
    return SlurmPool(WORKER, Settings.checked(settings))


def launch(
    context: HydraContext, sweep: DictConfig, overrides: Sequence[Sequence[str]], make_pool: Callable[[], Pool]
) -> list[JobReturn]:
    """Hydra's Launcher.launch: a JobReturn for each list of overrides.

    Raises ConfigurationError, before anything starts, that names every invalid job.
    """
    retry = checked_retry(sweep.retry)
    setup_globals()
    configure_log(sweep.hydra.hydra_logging, sweep.hydra.verbose)
    folder = Path(sweep.hydra.sweep.dir)
    pool = make_pool()
    with pool.environment():
        pool.prepare()
        rehearsed: set[str] = set()
        configs = compose_all(overrides, lambda given: _compose(context, sweep, given, pool, rehearsed))
        jobs = _jobs(configs, folder)
        _check_folders(jobs, sweep.force)
        rows = pool.run(jobs, retry, sweep.force)
    _sum_up(rows, folder)
    return [_returned(cfg, job, row) for cfg, job, row in zip(configs, jobs, rows, strict=True)]


def composed(context: HydraContext, sweep: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The checked config of one job of a sweep; ConfigurationError if it is invalid."""
    with config.hydra_errors(overrides):
        cfg = context.config_loader.load_sweep_config(sweep, config.without_null_choices(overrides))
    if cfg.resume:
        raise ConfigurationError(
            f"resume={cfg.resume} continues one run, and this is a sweep: remove -m, or remove resume (a sweep that is "
            "started again continues by itself)."
        )
    with open_dict(cfg):
        cfg.hydra.runtime.output_dir = str(Path(sweep.hydra.sweep.dir) / _subdir(cfg))
    config.check(cfg, overrides)
    return cfg


def _subdir(cfg: DictConfig) -> str:
    try:
        return str(cfg.hydra.sweep.subdir)
    except OmegaConfBaseException as error:
        given = OmegaConf.to_container(cfg.hydra.sweep, resolve=False)
        assert isinstance(given, dict)
        raise ConfigurationError(
            f"hydra.sweep.subdir={given['subdir']} is not known before the runs start: a run is found again by "
            "its folder, which is named after its id, not numbered; remove hydra.sweep.subdir."
        ) from error


def _compose(
    context: HydraContext, sweep: DictConfig, overrides: Sequence[str], pool: Pool, rehearsed: set[str]
) -> DictConfig:
    cfg = composed(context, sweep, overrides)
    settings = config.resolved(cfg)
    but_for_seed = run_id({**settings, "seed": 0})  # a config that works with one seed works with all
    if but_for_seed not in rehearsed:
        rehearse(pool.checkable_config(settings), RunFolder(cfg.hydra.runtime.output_dir))
        rehearsed.add(but_for_seed)
    return cfg


def rehearse(settings: dict[str, Any], folder: RunFolder) -> None:
    """Build all parts of a run, and its Trainer where Lightning could refuse it: importing Lightning takes seconds.

    Raises:
        ConfigurationError: also for an error of another type, so that it is reported beside those of the other jobs.
        RunError: another run that this one uses cannot be read.
    """
    try:
        if _asks_lightning(settings):
            from flowdiff.training.run import check_trainer

            check_trainer(settings, folder)
        else:
            from flowdiff.training.assembly import assemble_run

            assemble_run(settings)
    except FlowdiffError:
        raise
    except Exception as error:
        raise ConfigurationError(
            f"the run cannot be built ({sentence(error)}); HYDRA_FULL_ERROR=1 shows where."
        ) from error


def _asks_lightning(settings: dict[str, Any]) -> bool:
    """Whether the hardware differs from one process in full precision; the trainer's other arguments are checked."""
    asked = settings["accelerator"]
    one = (asked["devices"], asked["num_nodes"], asked["strategy"], asked["precision"]) == (1, 1, "auto", "32-true")
    return asked["kind"] == "gpu" or not one


def _jobs(configs: Sequence[DictConfig], folder: Path) -> list[Job]:
    """The jobs, each in the folder that already holds its run, whatever its name, or in a new one."""
    there = {path.name.rpartition("-")[2]: path for path in folder.glob("*/") if path.is_dir()}
    jobs = []
    for cfg in configs:
        settings = config.resolved(cfg)
        path = there.setdefault(run_id(settings), folder / cfg.hydra.sweep.subdir)
        jobs.append(Job(settings, path, tuple(cfg.hydra.overrides.task), folder.name))
    return jobs


def _check_folders(jobs: Sequence[Job], force: bool) -> None:
    """Raises ConfigurationError, with a line for each, if jobs would use a folder of another run, or two one folder."""
    refused = []
    names = labels([job.overrides for job in jobs])
    first: dict[Path, tuple[str, str]] = {}  # run id and name of the first job in each folder
    for job, name in zip(jobs, names, strict=True):
        run, other = first.setdefault(job.path.resolve(), (job.label.run_id, name))
        try:
            job.check_folder(force)
            if job.label.run_id != run:
                raise RunError(
                    f"{job.path} is the folder of {other} too: remove hydra.sweep.subdir, so that each has its own."
                )
        except RunError as error:
            refused.append(f"\n  {name}: {error}")
    if refused:
        raise ConfigurationError(
            f"{len(refused)} of {len(jobs)} jobs cannot have their folder, so none was started:{''.join(refused)}"
        )


def _sum_up(rows: Sequence[Row], folder: Path) -> None:
    names = {"done": "finished", "skipped": "skipped (complete)", "busy": "written by another process"}
    counts = Counter(names.get(row.state, row.state) for row in rows)
    command = "status" if any(row.state in WAITING for row in rows) else "report"
    print(f"{len(rows)} runs: {', '.join(f'{n} {state}' for state, n in counts.items())}; flowdiff {command} {folder}")
    for row in rows:
        if row.state in ("failed", "busy"):
            print(f"  {row.state} {row.name}: {row.note}")


def _returned(cfg: DictConfig, job: Job, row: Row) -> JobReturn:
    complete = job.folder.is_complete and row.state != "failed"  # it may hold the result of an earlier attempt
    fine = complete or row.state in WAITING
    result = (JobReturn if fine else FailedJob)(
        overrides=list(job.overrides),
        cfg=OmegaConf.masked_copy(cfg, [key for key in map(str, cfg) if key != "hydra"]),
        hydra_cfg=OmegaConf.masked_copy(cfg, "hydra"),
        working_dir=str(job.path),
        task_name=cfg.hydra.job.name,
        status=JobStatus.COMPLETED if fine else JobStatus.FAILED,
    )
    if complete:
        result.return_value = job.folder.test_loss()
    else:
        result._return_value = None if fine else RunError(f"{row.name} {row.state}: {row.note}")
    return result
