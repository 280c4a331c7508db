"""A sweep on SLURM: one array job, submitted through submitit; each task trains one run or several.

The resolved configs are pickled with the tasks, so later edits do not affect them. The run folders are prepared after
sbatch has accepted the job, and a task begins only when its submission has been recorded in the sweep's folder: a job
that sbatch refuses has changed nothing. The life of a task is in `flowdiff.launch.slurm.task`.
"""

from __future__ import annotations

import datetime
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pydantic
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from rich.console import Console

from flowdiff.errors import ConfigurationError
from flowdiff.launch.board import Board, Row, State
from flowdiff.launch.local import Worker
from flowdiff.launch.pending import JobRows, pending_jobs
from flowdiff.launch.slurm.queue import newest_jobs, queued_runs
from flowdiff.launch.slurm.submission import FOLDER, Submission, record, submissions
from flowdiff.launch.slurm.task import Limits, Task
from flowdiff.launch.status import statuses
from flowdiff.runs.identity import labels
from flowdiff.runs.job import Job, Retry
from flowdiff.runs.ownership import Busy, owner
from flowdiff.runs.provenance import git_commit

POLL = 5.0  # seconds between two looks at the queue
CLUSTER_VARIABLES = ("SLURM_CONF", "SLURM_JWT")  # how to reach the cluster; kept when submitting from inside a job
GPU_STRATEGIES = ("fsdp", "deepspeed")  # Lightning refuses these on a machine without a GPU


class Settings(pydantic.BaseModel):
    """The settings in conf/hydra/launcher/slurm.yaml, which explains each of them."""

    model_config = pydantic.ConfigDict(strict=True, extra="forbid", frozen=True)

    partition: str | None
    account: str | None
    qos: str | None
    constraint: str | None
    timeout_min: PositiveInt
    cpus_per_task: PositiveInt
    mem_gb: PositiveInt | PositiveFloat | None
    gpus: NonNegativeInt | None
    array_parallelism: PositiveInt
    runs_per_task: PositiveInt
    wait: bool
    signal_delay_s: PositiveInt
    max_timeouts: NonNegativeInt
    max_kills: NonNegativeInt
    setup: list[str]
    additional_parameters: dict[str, Any]

    @classmethod
    def checked(cls, given: Mapping[str, Any]) -> Settings:
        """Validate the settings; ConfigurationError names the first that is not allowed."""
        try:
            return cls(**given)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            key, message = str(first["loc"][0]), first["msg"]
            raise ConfigurationError(
                f"hydra.launcher.{key}={given.get(key)} is not allowed: {message[0].lower()}{message[1:]}."
            ) from None

    def limits(self) -> Limits:
        """The settings that a task needs."""
        return Limits(self.signal_delay_s, self.max_timeouts, self.max_kills)


class SlurmPool:
    """Submits jobs to SLURM; `run` returns after that, or with settings.wait when all jobs have ended."""

    def __init__(self, worker: Worker, settings: Settings, console: Console | None = None):
        self.worker = worker
        self.settings = settings
        self.console = console

    def prepare(self) -> None:
        """ConfigurationError on a machine that cannot submit jobs."""
        if shutil.which("sbatch") is None or shutil.which("srun") is None:
            raise ConfigurationError(
                "hydra/launcher=slurm needs sbatch and srun, which this machine does not have: submit from a login "
                "node of the cluster, or set hydra/launcher=local."
            )

    @contextmanager
    def environment(self) -> Iterator[None]:
        """Compose and submit in an environment without the variables of the job in which this process may run."""
        from submitit.helpers import clean_env

        kept = {k: v for k, v in os.environ.items() if k in CLUSTER_VARIABLES or k.startswith("SBATCH_")}
        with clean_env(("CUDA_VISIBLE_DEVICES",) if "SLURM_JOB_ID" in os.environ else ()):
            os.environ.update(kept)
            yield

    def checkable_config(self, config: dict[str, Any]) -> dict[str, Any]:
        """The config with a CPU as its device: a login node has other devices than the jobs will have."""
        given = config["accelerator"]
        strategy = "auto" if given["strategy"].startswith(GPU_STRATEGIES) else given["strategy"]
        here = {"kind": "cpu", "devices": 1, "num_nodes": 1, "strategy": strategy, "precision": "32-true"}
        return {**config, "accelerator": {**given, **here}}

    def run(self, jobs: Sequence[Job], retry: Retry, force: bool) -> list[Row]:
        """Submit the jobs that are neither complete nor in the queue; with settings.wait, wait until they have ended.

        Returns a row for each job.

        Raises:
            ConfigurationError: SLURM refuses the jobs; nothing was submitted or changed.
            KeyboardInterrupt: after Ctrl-C while waiting; the jobs continue.
        """
        names = labels([job.overrides for job in jobs])
        rows = [Row(name, job.folder, job.max_steps) for name, job in zip(names, jobs, strict=True)]
        with Board(rows, self.console) as board:
            chosen = pending_jobs(list(zip(jobs, rows, strict=True)), board, retry, force)
            chosen = _without_owner(_not_queued(chosen, board), board)
            if chosen:
                self._submit(chosen, board, force)
            if self.settings.wait:
                try:
                    _follow(board)
                except KeyboardInterrupt:
                    board.say("the jobs continue; flowdiff cancel ends them")
                    raise
        return rows

    def _submit(self, chosen: JobRows, board: Board, force: bool) -> None:
        jobs = [job for job, _ in chosen]
        size = self.settings.runs_per_task
        packs = [jobs[i : i + size] for i in range(0, len(jobs), size)]
        sweep = jobs[0].path.parent
        limits = self.settings.limits()
        tasks = [Task(tuple(replace(job, path=job.path.resolve()) for job in p), self.worker, limits) for p in packs]
        parameters = sbatch_parameters(self.settings, [job.config for job in jobs], sweep)
        commit, diff = git_commit(), _diff()
        names = [[job.path.name for job in pack] for pack in packs]
        job_id = submit_array(tasks, sweep / FOLDER, parameters)
        try:
            for job in jobs:
                with suppress(Busy):  # another process took the folder meanwhile; the task will report it
                    job.prepare(force)
            if diff:
                (sweep / FOLDER / f"{job_id}.diff").write_bytes(diff)
            now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
            record(sweep, Submission(job_id, now, sys.argv, commit, names))
        except BaseException:
            subprocess.run(["scancel", job_id], check=False)
            raise
        where = f" on {self.settings.partition}" if self.settings.partition else ""
        board.say(f"submitted SLURM job {job_id}{where}: {len(jobs)} runs in an array of {len(packs)} tasks")


def sbatch_parameters(settings: Settings, configs: Sequence[Mapping[str, Any]], sweep: Path) -> dict[str, Any]:
    """submitit's parameters of the batch script; ConfigurationError if one array job cannot contain all the runs."""
    wanted = [config["accelerator"] for config in configs]
    layouts = {(str(node["devices"]), node["num_nodes"]) for node in wanted}
    if len(layouts) > 1:
        raise ConfigurationError(
            "accelerator.devices and accelerator.num_nodes differ within the sweep, but all tasks of an array job get "
            "the same devices: use one sweep for each."
        )
    devices, nodes = wanted[0]["devices"], wanted[0]["num_nodes"]
    if isinstance(devices, list):
        raise ConfigurationError(
            "accelerator.devices is a list of indices, but SLURM assigns the devices: give a number."
        )
    if devices == "auto":
        if not settings.gpus:
            raise ConfigurationError(
                "accelerator.devices=auto is not known before the job runs: give a number, or set hydra.launcher.gpus=…"
            )
        devices = settings.gpus
    if devices * nodes > 1 and settings.runs_per_task > 1:
        raise ConfigurationError(
            f"hydra.launcher.runs_per_task={settings.runs_per_task} cannot be combined with runs on "
            f"{devices * nodes} devices: set hydra.launcher.runs_per_task=1."
        )
    folder = str((sweep / FOLDER).resolve())
    gpus = settings.gpus
    if gpus is None:
        kinds = {node["kind"] for node in wanted}
        gpus = devices if "gpu" in kinds or ("auto" in kinds and _has_gpus(settings.partition)) else 0
    given = {
        "job_name": sweep.name,
        "partition": settings.partition,
        "account": settings.account,
        "qos": settings.qos,
        "constraint": settings.constraint,
        "time": settings.timeout_min,
        "nodes": nodes,
        "ntasks_per_node": devices,
        "cpus_per_task": settings.cpus_per_task,
        "gpus_per_node": gpus or None,
        "mem": None if settings.mem_gb is None else f"{round(settings.mem_gb * 1024)}MB",
        "signal_delay_s": settings.signal_delay_s,
        "array_parallelism": settings.array_parallelism,
        # trap: bash must survive the SIGTERM that ends its steps. srun ignores the batch script's cpus-per-task.
        "setup": ["trap : TERM", f"export PYTHONPATH={shlex.quote(_python_path())}", *settings.setup],
        "srun_args": [f"--cpus-per-task={settings.cpus_per_task}", "--kill-on-bad-exit=1"],
        "teardown": [f'{shlex.join([sys.executable, "-m", "flowdiff.launch.slurm.task", folder])} "$?"'],
        "additional_parameters": {"requeue": True, **settings.additional_parameters},
    }
    return {key: value for key, value in given.items() if value is not None}


def submit_array(tasks: Sequence[Task], folder: Path, parameters: Mapping[str, Any]) -> str:
    """Submit an array job, even of one task, and return its id; ConfigurationError, leaving no files, if refused."""
    import submitit
    from submitit.core.utils import FailedJobError, JobPaths

    before = set(folder.glob("*")) if folder.is_dir() else None
    try:
        executor = submitit.SlurmExecutor(folder)
        executor.update_parameters(**parameters)
        with redirect_stderr(StringIO()):  # submitit prints what it also raises
            if len(tasks) > 1:
                return executor.submit_array(tasks)[0].job_id.partition("_")[0]
            executor.parameters["map_count"] = 1  # submitit makes an array only of several tasks
            job = executor.submit(tasks[0])
        job.paths.submitted_pickle.rename(JobPaths(folder, f"{job.job_id}_0").submitted_pickle)
        return job.job_id
    except (FailedJobError, ValueError) as error:
        for path in set(folder.glob("*")) - (before or set()):
            path.unlink()
        if before is None and folder.is_dir():
            folder.rmdir()
        message = "; ".join(str(error).strip().splitlines())
        raise ConfigurationError(f"SLURM refuses this sweep, and nothing was submitted: {message}.") from None


def _not_queued(pairs: JobRows, board: Board) -> JobRows:
    """The jobs that are not in the queue from an earlier submission of the sweep."""
    if not pairs:
        return []
    earlier = submissions(pairs[0][0].path.parent)
    queued, names = queued_runs(earlier) or {}, newest_jobs(earlier)
    for job, row in pairs:
        if job.path.name in queued:
            board.change(row, queued[job.path.name], f"already in the queue, as SLURM job {names[job.path.name]}")
    return [(job, row) for job, row in pairs if job.path.name not in queued]


def _without_owner(pairs: JobRows, board: Board) -> JobRows:
    """The jobs whose folder no process is writing."""
    free = []
    for job, row in pairs:
        other = owner(job.path)
        if other is None:
            free.append((job, row))
        else:
            board.change(row, "busy", f"{job.path} is being written by process {other['pid']} on {other['host']}")
    return free


def _follow(board: Board) -> None:
    """Show the states of the runs until none is queued or running."""
    ends: dict[str, State] = {"done": "done", "pruned": "pruned", "failed": "failed", "stopped": "stopped"}
    ends["lost"] = "failed"
    while left := [row for row in board.rows if row.state in ("queued", "running")]:
        time.sleep(POLL)
        now = {status.run: status for status in statuses(left[0].folder.path.parent)}
        for row in left:
            status = now[row.folder.path.name]
            row.update()
            state: State = ends.get(status.state, "running" if status.state == "running" else "queued")
            if state != row.state:
                board.change(row, state, status.note if state in ends else "")
        board.refresh()


def _has_gpus(partition: str | None) -> bool:
    """Whether the nodes of a partition (None: the default one) have GPUs."""
    done = subprocess.run(
        ["sinfo", "--noheader", "--format=%P|%G"], capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    lines = [line.partition("|") for line in done.stdout.splitlines()]
    names = partition.split(",") if partition else [name for name, _, _ in lines if name.endswith("*")]
    return any("gpu" in gres for name, _, gres in lines if name in names or name.rstrip("*") in names)


def _python_path() -> str:
    """The entries of sys.path that do not belong to the interpreter, which the jobs share."""
    own = tuple(str(Path(prefix)) + os.sep for prefix in (sys.prefix, sys.base_prefix))
    return os.pathsep.join(dict.fromkeys(path or os.getcwd() for path in sys.path if not path.startswith(own)))


def _diff() -> bytes:
    """The uncommitted changes of the running code."""
    command = ["git", "diff", "HEAD"]
    return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, check=False).stdout
