"""A sweep on SLURM: one array job through submitit, whose tasks train a run each, or several on the same devices.

The resolved configs travel with the tasks, so nothing that is edited later reaches them. A task begins when its
submission has been recorded in the sweep's folder, and folders are made ready in between: whatever sbatch refuses has
changed nothing. What becomes of a task is in `flowdiff.launch.slurm.pool.task`.
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
from flowdiff.launch.board import Board, Row
from flowdiff.launch.local import Worker
from flowdiff.launch.pending import Pairs, pending
from flowdiff.launch.slurm.queue import jobs_of, queue_states
from flowdiff.launch.slurm.submission import FOLDER, Submission, record, submissions
from flowdiff.launch.slurm.task import Limits, Task
from flowdiff.launch.status import statuses
from flowdiff.runs.identity import labels
from flowdiff.runs.job import Job, Retry
from flowdiff.runs.lock import Busy, owner
from flowdiff.runs.provenance import git_commit

LOOK = 5.0  # seconds between two looks at the queue
KEPT = ("SLURM_CONF", "SLURM_JWT")  # of a job's environment: where the cluster is, not what the job was given
GPU_ONLY = ("fsdp", "deepspeed")  # strategies that Lightning refuses where there is no GPU


class Settings(pydantic.BaseModel):
    """What conf/hydra/launcher/slurm.yaml holds; ConfigurationError for what is not allowed."""

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
        """The settings; ConfigurationError for the first that is not allowed."""
        try:
            return cls(**given)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            key, message = first["loc"][0], first["msg"]
            raise ConfigurationError(
                f"hydra.launcher.{key}={given.get(key)} is not allowed: {message[0].lower()}{message[1:]}."
            ) from None

    def limits(self) -> Limits:
        """What a task needs to know."""
        return Limits(self.signal_delay_s, self.max_timeouts, self.max_kills)


class SlurmPool:
    """Hands jobs to SLURM; returns once they are submitted, or follows them with settings.wait."""

    def __init__(self, worker: Worker, settings: Settings, console: Console | None = None):
        self.worker = worker
        self.settings = settings
        self.console = console

    def warm(self) -> None:
        """ConfigurationError on a machine that cannot submit."""
        if shutil.which("sbatch") is None or shutil.which("srun") is None:
            raise ConfigurationError(
                "hydra/launcher=slurm needs sbatch and srun, and this machine has none: submit from a login node of "
                "the cluster, or take hydra/launcher=local."
            )

    @contextmanager
    def environment(self) -> Iterator[None]:
        """Where a sweep is composed and submitted: as outside of any job, also when this process runs in one."""
        from submitit.helpers import clean_env

        kept = {k: v for k, v in os.environ.items() if k in KEPT or k.startswith("SBATCH_")}
        with clean_env(("CUDA_VISIBLE_DEVICES",) if "SLURM_JOB_ID" in os.environ else ()):
            os.environ.update(kept)
            yield

    def rehearsal(self, config: dict[str, Any]) -> dict[str, Any]:
        """The config as it can be tried where it is submitted: a login node has other devices than the jobs get."""
        given = config["accelerator"]
        strategy = "auto" if given["strategy"].startswith(GPU_ONLY) else given["strategy"]
        here = {"kind": "cpu", "devices": 1, "num_nodes": 1, "strategy": strategy, "precision": "32-true"}
        return {**config, "accelerator": {**given, **here}}

    def run(self, jobs: Sequence[Job], retry: Retry, force: bool) -> list[Row]:
        """Submit what is to be run and not yet queued; with settings.wait follow it. A row for each job.

        ConfigurationError, with nothing submitted or changed, for what SLURM refuses. KeyboardInterrupt after Ctrl-C
        while following; the jobs go on.
        """
        names = labels([job.overrides for job in jobs])
        rows = [Row(name, job.folder, job.max_steps) for name, job in zip(names, jobs, strict=True)]
        with Board(rows, self.console) as board:
            chosen = pending(list(zip(jobs, rows, strict=True)), board, retry, force)
            chosen = _free(_unqueued(chosen, board), board)
            if chosen:
                self._submit(chosen, board, force)
            if self.settings.wait:
                try:
                    _follow(board)
                except KeyboardInterrupt:
                    board.say("the jobs go on; flowdiff cancel ends them")
                    raise
        return rows

    def _submit(self, chosen: Pairs, board: Board, force: bool) -> None:
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
                with suppress(Busy):  # whoever took the folder meanwhile; the task will say so
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
    """What submitit is to write into the batch script; ConfigurationError for runs that one array cannot hold."""
    wanted = [config["accelerator"] for config in configs]
    layouts = {(str(node["devices"]), node["num_nodes"]) for node in wanted}
    if len(layouts) > 1:
        raise ConfigurationError(
            "accelerator.devices and accelerator.num_nodes differ within the sweep, and all tasks of an array get the "
            "same: take one sweep for each."
        )
    devices, nodes = wanted[0]["devices"], wanted[0]["num_nodes"]
    if isinstance(devices, list):
        raise ConfigurationError(
            "accelerator.devices is a list of indices, and SLURM gives out the devices: take a number."
        )
    if devices == "auto":
        if not settings.gpus:
            raise ConfigurationError(
                "accelerator.devices=auto is not known before the job runs: take a number, or hydra.launcher.gpus=…"
            )
        devices = settings.gpus
    if devices * nodes > 1 and settings.runs_per_task > 1:
        raise ConfigurationError(
            f"hydra.launcher.runs_per_task={settings.runs_per_task} does not go with runs on {devices * nodes} "
            "devices: take hydra.launcher.runs_per_task=1."
        )
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
        # bash would die of the SIGTERM that its steps end by; srun does not take cpus-per-task from the batch script.
        "setup": ["trap : TERM", f"export PYTHONPATH={shlex.quote(_python_path())}", *settings.setup],
        "srun_args": [f"--cpus-per-task={settings.cpus_per_task}", "--kill-on-bad-exit=1"],
        "teardown": [
            f'{shlex.quote(sys.executable)} -m flowdiff.launch.slurm.task {shlex.quote(str((sweep / FOLDER).resolve()))} "$?"'
        ],
        "additional_parameters": {"requeue": True, **settings.additional_parameters},
    }
    return {key: value for key, value in given.items() if value is not None}


def submit_array(tasks: Sequence[Task], folder: Path, parameters: Mapping[str, Any]) -> str:
    """Submit an array job, also of one task; its id. ConfigurationError, with nothing left behind, where refused."""
    import submitit
    from submitit.core.utils import FailedJobError, JobPaths

    before = set(folder.glob("*")) if folder.is_dir() else None
    try:
        executor = submitit.SlurmExecutor(folder)
        executor.update_parameters(**parameters)
        with redirect_stderr(StringIO()):  # submitit prints what it also raises
            if len(tasks) > 1:
                return executor.submit_array(tasks)[0].job_id.partition("_")[0]
            executor.parameters["map_count"] = 1  # by itself it makes an array of several only
            job = executor.submit(tasks[0])
        job.paths.submitted_pickle.rename(JobPaths(folder, f"{job.job_id}_0").submitted_pickle)
        return job.job_id
    except (FailedJobError, ValueError) as error:
        for path in set(folder.glob("*")) - (before or set()):
            path.unlink()
        if before is None and folder.is_dir():
            folder.rmdir()
        said = "; ".join(str(error).strip().splitlines())
        raise ConfigurationError(f"SLURM does not take this sweep, and nothing was submitted: {said}.") from None


def _unqueued(pairs: Pairs, board: Board) -> Pairs:
    """Those that no earlier submission of the sweep has in the queue."""
    if not pairs:
        return []
    earlier = submissions(pairs[0][0].path.parent)
    queued, names = queue_states(earlier) or {}, jobs_of(earlier)
    for job, row in pairs:
        if job.path.name in queued:
            board.change(row, queued[job.path.name], f"already in the queue, as SLURM job {names[job.path.name]}")
    return [(job, row) for job, row in pairs if job.path.name not in queued]


def _free(pairs: Pairs, board: Board) -> Pairs:
    """Those whose folder no process is writing."""
    free = []
    for job, row in pairs:
        other = owner(job.path)
        if other is None:
            free.append((job, row))
        else:
            board.change(row, "busy", f"{job.path} is being written by process {other['pid']} on {other['host']}")
    return free


def _follow(board: Board) -> None:
    """Show what becomes of the runs until none is queued or running."""
    ends = {"done": "done", "pruned": "pruned", "failed": "failed", "lost": "failed", "stopped": "stopped"}
    while left := [row for row in board.rows if row.state in ("queued", "running")]:
        time.sleep(LOOK)
        now = {status.run: status for status in statuses(left[0].folder.path.parent)}
        for row in left:
            status = now[row.folder.path.name]
            row.look()
            state = ends.get(status.state, "running" if status.state == "running" else "queued")
            if state != row.state:
                board.change(row, state, status.note if state in ends else "")
        board.refresh()


def _has_gpus(partition: str | None) -> bool:
    """Whether the nodes of a partition (None: of the default one) have GPUs."""
    done = subprocess.run(["sinfo", "--noheader", "--format=%P|%G"], capture_output=True, text=True, check=False)
    lines = [line.partition("|") for line in done.stdout.splitlines()]
    names = partition.split(",") if partition else [name for name, _, _ in lines if name.endswith("*")]
    return any("gpu" in gres for name, _, gres in lines if name in names or name.rstrip("*") in names)


def _python_path() -> str:
    """Where this process finds what is not installed; the jobs' own interpreter knows the rest."""
    own = tuple(str(Path(prefix)) + os.sep for prefix in (sys.prefix, sys.base_prefix))
    return os.pathsep.join(dict.fromkeys(path or os.getcwd() for path in sys.path if not path.startswith(own)))


def _diff() -> bytes:
    """What the code that runs has changed since its commit."""
    command = ["git", "diff", "HEAD"]
    return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, check=False).stdout
