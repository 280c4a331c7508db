"""A sweep on this machine: a pool of fresh processes, each forked from a server that has everything imported.

Every run gets a process of its own, so that nothing leaks from one to the next, and a slot: the GPUs it sees and the
threads it may use. What became of a run is read from its folder, so a run is complete exactly when its folder says so.
Ctrl-C, SIGTERM or SIGUSR2 asks every run to save at the end of its batch; Ctrl-C after that kills them. A hangup is
survived. When this process itself is killed its runs die with it, and the same command goes on from their last
checkpoints.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any, Literal

from rich.console import Console

from flowdiff.errors import RunError
from flowdiff.launch.board import Board, Row
from flowdiff.launch.pending import pending, prepared
from flowdiff.launch.session import announced
from flowdiff.launch.slots import Slot, available_cores, slots, visible_gpus
from flowdiff.runs.identity import labels
from flowdiff.runs.job import Interrupted, Job, Retry
from flowdiff.runs.lock import Busy, owner
from flowdiff.runs.signals import ASKING, STOPPED, heed, withheld

# Exit status of a run's process, beside STOPPED.
FAILED, BUSY = 1, 75
LOOK = 0.5  # seconds between two looks at the progress of the runs
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Worker:
    """What trains a job, by name, so that this process need not import it: `module.function(job)`."""

    module: str
    function: str
    preload: tuple[str, ...] = ()

    def load(self) -> Callable[[Job], Any]:
        """The function."""
        return getattr(import_module(self.module), self.function)


class LocalPool:
    """Runs jobs on this machine. jobs_per_device: how many share a GPU (or the CPU), ≥ 1; None: what fits.

    killed_is: what a run is whose process was killed; "stopped" when whoever uses the pool will go on with it.
    announces: whether `flowdiff status` and `flowdiff cancel` are to know this process as the one that runs the sweep.
    """

    def __init__(
        self,
        worker: Worker,
        jobs_per_device: int | None = None,
        console: Console | None = None,
        killed_is: Literal["failed", "stopped"] = "failed",
        announces: bool = False,
    ):
        self.worker = worker
        self.jobs_per_device = jobs_per_device
        self.console = console
        self.killed_is = killed_is
        self.announces = announces
        self._context = multiprocessing.get_context("forkserver")

    def warm(self) -> None:
        """Start the server and return at once: it imports while this process does something else."""
        from multiprocessing import forkserver

        self._context.set_forkserver_preload([self.worker.module, *self.worker.preload])
        values = dict.fromkeys(THREADS, "1")  # for what is sized at import; a slot sets its own
        values["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # no CUDA context before the fork
        values["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)  # it does not know ours
        with _environment(values), _shielded():
            forkserver.ensure_running()

    def environment(self) -> AbstractContextManager[None]:
        """Ours as it is."""
        return nullcontext()

    def rehearsal(self, config: dict[str, Any]) -> dict[str, Any]:
        """As it is: it runs where it is tried."""
        return config

    def run(self, jobs: Sequence[Job], retry: Retry, force: bool) -> list[Row]:
        """Run what is to be run; a row for each job, none of them queued or running. KeyboardInterrupt after Ctrl-C."""
        self.warm()
        names = labels([job.overrides for job in jobs])
        rows = [Row(name, job.folder, job.max_steps) for name, job in zip(names, jobs, strict=True)]
        with Board(rows, self.console) as board:
            chosen = pending(list(zip(jobs, rows, strict=True)), board, retry, force)
            if chosen:
                configs = [job.config for job, _ in chosen]
                places = slots(configs, self.jobs_per_device, _gpus(jobs), available_cores())  # or a refusal
                ready = prepared(chosen, board, force)
                sweep = _Sweep(self._context, self.worker, board, ready, places, self.killed_is)
                names = [job.path.name for job, _ in ready]
                with announced(jobs[0].path.parent, names) if self.announces else nullcontext():
                    sweep.run()
        return rows


class _Sweep:
    """One sweep in progress: the queue, the free slots, and the processes that run."""

    def __init__(
        self,
        context: Any,
        worker: Worker,
        board: Board,
        queue: list[tuple[Job, Row]],
        places: Sequence[Slot],
        killed_is: Literal["failed", "stopped"],
    ):
        self.context = context
        self.worker = worker
        self.board = board
        self.queue = queue
        self.free = list(places)
        self.killed_is = killed_is
        self.running: dict[int, tuple[BaseProcess, Job, Row, Slot]] = {}  # by sentinel
        self.asked: signal.Signals | None = None

    def run(self) -> None:
        with self._signals():
            try:
                while self.running or (self.queue and not self.asked):
                    while self.queue and self.free and not self.asked:
                        self._start(*self.queue.pop(0), self.free.pop(0))
                    for sentinel in wait(list(self.running), timeout=LOOK):
                        self._end(*self.running.pop(sentinel))
                    self.board.refresh()
            finally:
                self._signal_all(signal.SIGKILL)  # none is left, unless this process goes down by an error
        if self.asked is signal.SIGINT:
            raise KeyboardInterrupt
        if self.asked is not None:
            sys.exit(128 + self.asked)

    def _start(self, job: Job, row: Row, slot: Slot) -> None:
        process = self.context.Process(target=_child, args=(self.worker, job, slot), name=row.name)
        with _shielded():  # should the server have to be started again
            process.start()
        self.running[process.sentinel] = process, job, row, slot
        self.board.change(row, "running")

    def _end(self, process: BaseProcess, job: Job, row: Row, slot: Slot) -> None:
        process.join()
        self.free.append(slot)
        row.look()
        code = process.exitcode
        if job.folder.is_complete:
            row.step = row.max_steps
            self.board.change(row, "done")
        elif pruned := job.folder.pruned():
            self.board.change(row, "pruned", f"at step {pruned['step']:,}")
        elif code == BUSY:
            other = owner(job.path)
            by = f" by process {other['pid']} on {other['host']}" if other else ""
            self.board.change(row, "busy", f"{job.path} is being written{by}")
        elif code in (STOPPED, -signal.SIGTERM) or (self.asked and code != FAILED):
            self.board.change(row, "stopped", "the same command goes on from its last checkpoint")
        elif code < 0 and self.killed_is == "stopped":
            self.board.change(row, "stopped", f"ended by {signal.Signals(-code).name}")
        else:
            self.board.change(row, "failed", _failure(job, code))

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def stop(number: int, frame: FrameType | None) -> None:
            again = self.asked is not None
            self.asked = self.asked or signal.Signals(number)
            if again and number == signal.SIGINT:
                self._signal_all(signal.SIGKILL)
            elif not again:  # a queue sends several signals for one stop
                self._signal_all(signal.SIGTERM)
                self.board.say("stopping: every run saves at the end of its batch; Ctrl-C again kills them")

        terminals = [file for file in (1, 2) if os.isatty(file)]

        def hangup(number: int, frame: FrameType | None) -> None:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for file in terminals:  # writing to what is gone would be an error
                os.dup2(nowhere, file)
            os.close(nowhere)

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {s: signal.signal(s, stop) for s in (signal.SIGINT, *ASKING)}
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, hangup)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _signal_all(self, number: signal.Signals) -> None:
        for process, *_ in list(self.running.values()):
            with suppress(ProcessLookupError):
                # SIGKILL goes to its whole group: data workers and the ranks of a distributed run have no say.
                if number == signal.SIGKILL and os.getpgid(process.pid) == process.pid:
                    os.killpg(process.pid, number)
                else:
                    os.kill(process.pid, number)


def _child(worker: Worker, job: Job, slot: Slot) -> None:
    """The life of one run's process."""
    os.setsid()  # Ctrl-C is for the parent, which tells us
    gc.freeze()  # what the server has imported is no garbage: collections need not walk it
    threading.Thread(target=_die_with_parent, daemon=True).start()
    with _as_command(worker, job):
        train_here(worker, job, slot)


def train_here(worker: Worker, job: Job, slot: Slot) -> None:
    """Train a job in this process, which does nothing else; SystemExit with FAILED, BUSY or STOPPED if it must.

    Before and after training a signal of ASKING ends the process at once: there is nothing new to save.
    """
    heed()
    _bind(slot)
    _redirect(job)
    try:
        worker.load()(job)
    except Busy:
        sys.exit(BUSY)
    except Interrupted as error:
        logging.getLogger(__name__).info("%s", error)
        sys.exit(STOPPED)
    except Exception:
        logging.getLogger(__name__).exception("the run failed")
        sys.exit(FAILED)


@contextmanager
def _shielded() -> Iterator[None]:
    """The server, and a run until it can heed them, must not die of signals that a queue sends to every process."""
    with withheld():
        resource_tracker.ensure_running()  # else it is started with the server, and it unblocks some of them
        with withheld():
            yield


def _bind(slot: Slot) -> None:
    import torch
    from threadpoolctl import threadpool_limits

    os.environ.update(dict.fromkeys(THREADS, str(slot.threads)))  # for processes it may start itself
    torch.set_num_threads(slot.threads)
    threadpool_limits(slot.threads)
    if slot.gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(slot.gpus)


def _redirect(job: Job) -> None:
    """Everything the run says goes to train.log."""
    job.path.mkdir(parents=True, exist_ok=True)
    file = os.open(job.path / "train.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr, force=True
    )
    logging.getLogger("flowdiff").setLevel(logging.INFO)


@contextmanager
def _as_command(worker: Worker, job: Job) -> Iterator[None]:
    """Lightning starts the other ranks of a distributed run by this process's command line: let it name the job."""
    if job.config["accelerator"]["devices"] == 1:
        yield
        return
    with TemporaryDirectory() as folder:
        file = Path(folder) / "job.json"
        job.save(file)
        sys.modules["__main__"].__spec__ = find_spec(worker.module)
        sys.argv = [worker.module, str(file)]
        yield


def _die_with_parent() -> None:
    wait([multiprocessing.parent_process().sentinel])
    os.killpg(os.getpid(), signal.SIGKILL)


def _failure(job: Job, code: int | None) -> str:
    """Why a run failed: its own words where it left any, which it cannot on a full disk."""
    said = job.folder.failure() if code == FAILED else None
    if said is not None:
        return said
    error = f"it left no result; see {job.path / 'train.log'}" if code == FAILED else _died(code)
    try:
        job.fail(error)
    except RunError as refusal:
        return str(refusal)
    return error


def _died(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"the process was ended by {name}{hint}; trying again goes on from its last checkpoint."
    return f"the process ended with exit status {code} and no result."


def _gpus(jobs: Sequence[Job]) -> list[str]:
    return [] if all(job.config["accelerator"]["kind"] == "cpu" for job in jobs) else visible_gpus()


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
