"""A sweep on this machine: every run in a new process, forked from a server that has already imported everything.

Because each run has its own process, nothing leaks from one run to the next. Each run also has a slot: the GPUs that it
sees and the threads that it may use. The outcome of a run is read from its folder, so a run is complete exactly when
its folder says so.

Ctrl-C, SIGTERM or SIGUSR2 asks every run to save at the end of its batch; a second Ctrl-C kills them. A sweep survives
the loss of its terminal (SIGHUP). If the process of the sweep is killed, its runs die with it, and the same command
continues from their last checkpoints.
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
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any, Literal

from rich.console import Console

from flowdiff.errors import RunError
from flowdiff.launch.board import Board, Row
from flowdiff.launch.pending import JobRows, pending_jobs, prepare_folders
from flowdiff.launch.session import recorded_session
from flowdiff.launch.slots import Slot, slots, visible_gpus
from flowdiff.runs.cores import available_cores, thread_environment, threads_of_user
from flowdiff.runs.identity import labels
from flowdiff.runs.job import RESUME_HINT, Interrupted, Job, Retry
from flowdiff.runs.ownership import Busy, owner
from flowdiff.runs.signals import (
    EXIT_STOPPED,
    STOP_SIGNALS,
    exit_on_stop_signal,
    stop_signals_blocked,
    terminal_leaver,
)

# Exit statuses of a run's process, besides EXIT_STOPPED.
EXIT_FAILED, EXIT_BUSY = 1, 75
REFRESH = 0.5  # seconds between two updates of the board


@dataclass(frozen=True)
class Worker:
    """The function that trains a job, `module.function(job)`, by name: this process need not import it.

    Args:
        module: its module, imported by the fork server.
        function: its name in the module.
        preload: further modules that the fork server imports.
    """

    module: str
    function: str
    preload: tuple[str, ...] = ()

    def load(self) -> Callable[[Job], Any]:
        """Import the function."""
        return getattr(import_module(self.module), self.function)


class LocalPool:
    """Runs jobs on this machine.

    Args:
        worker: the function that trains a job.
        jobs_per_device: how many runs share a GPU, or the CPU, ≥ 1; None: as many as fit (see `slots`).
        console: where the board is shown.
        state_if_killed: state of a run whose process was killed; "stopped" if the caller will start it again.
        record_session: whether to record the session for `flowdiff status` and `flowdiff cancel`.
    """

    def __init__(
        self,
        worker: Worker,
        jobs_per_device: int | None = None,
        console: Console | None = None,
        state_if_killed: Literal["failed", "stopped"] = "failed",
        record_session: bool = False,
    ):
        self.worker = worker
        self.jobs_per_device = jobs_per_device
        self.console = console
        self.state_if_killed = state_if_killed
        self.record_session = record_session
        self._context = multiprocessing.get_context("forkserver")

    def prepare(self) -> None:
        """Start the fork server and return at once: it imports while this process does something else."""
        self._context.set_forkserver_preload([self.worker.module, *self.worker.preload])
        values = thread_environment(1)  # for thread pools created at import; a slot sets its own number
        values["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # no CUDA context before the fork
        values["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)  # it does not inherit sys.path
        with _environment(values), _signals_blocked_in_children():
            forkserver.ensure_running()

    def environment(self) -> AbstractContextManager[None]:
        """The environment as it is."""
        return nullcontext()

    def checkable_config(self, config: dict[str, Any]) -> dict[str, Any]:
        """The config as it is: the run is checked on the machine that trains it."""
        return config

    def run(self, jobs: Sequence[Job], retry: Retry, force: bool) -> list[Row]:
        """Run the jobs that are not complete.

        Returns a row for each job; none is queued or running.

        Raises:
            KeyboardInterrupt: after Ctrl-C.
            ConfigurationError: this machine cannot run the jobs.
        """
        self.prepare()
        names = labels([job.overrides for job in jobs])
        rows = [Row(name, job.folder, job.max_steps) for name, job in zip(names, jobs, strict=True)]
        with Board(rows, self.console) as board:
            chosen = pending_jobs(list(zip(jobs, rows, strict=True)), board, retry, force)
            if chosen:
                configs = [job.config for job, _ in chosen]
                on_cpu = all(job.config["accelerator"]["kind"] == "cpu" for job in jobs)
                gpus = [] if on_cpu else visible_gpus()
                free = slots(configs, self.jobs_per_device, gpus, available_cores())  # or ConfigurationError
                ready = prepare_folders(chosen, board, force)
                sweep = _Sweep(self._context, self.worker, board, ready, free, self.state_if_killed)
                names = [job.path.name for job, _ in ready]
                with recorded_session(jobs[0].path.parent, names) if self.record_session else nullcontext():
                    sweep.run()
        return rows


class _Sweep:
    """A sweep in progress: the queue, the free slots and the running processes."""

    def __init__(
        self,
        context: ForkServerContext,
        worker: Worker,
        board: Board,
        queue: JobRows,
        free: list[Slot],
        state_if_killed: Literal["failed", "stopped"],
    ):
        self.context = context
        self.worker = worker
        self.board = board
        self.queue = queue
        self.free = free
        self.state_if_killed = state_if_killed
        self.running: dict[int, tuple[ForkServerProcess, Job, Row, Slot]] = {}  # by the process's sentinel
        self.asked: signal.Signals | None = None

    def run(self) -> None:
        with self._signals():
            try:
                while self.running or (self.queue and not self.asked):
                    while self.queue and self.free and not self.asked:
                        self._start(*self.queue.pop(0), self.free.pop(0))
                    ended = wait(list(self.running), timeout=REFRESH)
                    for sentinel in [sentinel for sentinel in self.running if sentinel in ended]:
                        self._end(*self.running.pop(sentinel))
                    self.board.refresh()
            finally:
                self._signal_all(signal.SIGKILL)  # only after an error in this process are there any
        if self.asked is signal.SIGINT:
            raise KeyboardInterrupt
        if self.asked is not None:
            sys.exit(128 + self.asked)

    def _start(self, job: Job, row: Row, slot: Slot) -> None:
        process = self.context.Process(target=_child, args=(self.worker, job, slot), name=row.name)
        with _signals_blocked_in_children():  # in case the server must be started again
            process.start()
        self.running[process.sentinel] = process, job, row, slot
        self.board.change(row, "running")

    def _end(self, process: ForkServerProcess, job: Job, row: Row, slot: Slot) -> None:
        process.join()
        self.free.append(slot)
        row.update()
        code = process.exitcode or 0  # None only before it has ended
        if job.folder.is_complete and code != EXIT_FAILED:  # after a failure it is the result of an earlier attempt
            row.step = row.max_steps
            self.board.change(row, "done")
        elif pruned := job.folder.pruned():
            self.board.change(row, "pruned", f"at step {pruned['step']:,}")
        elif code == EXIT_BUSY:
            other = owner(job.path)
            by = f" by process {other['pid']} on {other['host']}" if other else ""
            self.board.change(row, "busy", f"{job.path} is being written{by}")
        elif code in (EXIT_STOPPED, -signal.SIGTERM) or (self.asked and code != EXIT_FAILED):
            self.board.change(row, "stopped", RESUME_HINT)
        elif code < 0 and self.state_if_killed == "stopped":
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
            elif not again:  # a queue sends several signals
                self._signal_all(signal.SIGTERM)
                self.board.say("stopping: every run saves at the end of its batch; press Ctrl-C again to kill them")

        leave_terminal = terminal_leaver()
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {s: signal.signal(s, stop) for s in (signal.SIGINT, *STOP_SIGNALS)}
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, lambda number, frame: leave_terminal())
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _signal_all(self, number: signal.Signals) -> None:
        for process, *_ in list(self.running.values()):
            if (pid := process.pid) is None:
                continue
            with suppress(ProcessLookupError):
                # SIGKILL goes to the whole process group, so that data workers and other ranks die too.
                if number == signal.SIGKILL and os.getpgid(pid) == pid:
                    os.killpg(pid, number)
                else:
                    os.kill(pid, number)


def _child(worker: Worker, job: Job, slot: Slot) -> None:
    """The main function of a run's process."""
    os.setsid()  # Ctrl-C goes to the parent, which passes it on
    gc.freeze()  # garbage collections need not walk what the server has imported
    threading.Thread(target=_die_with_parent, daemon=True).start()
    with _as_command(worker, job):
        train_here(worker, job, slot)


def train_here(worker: Worker, job: Job, slot: Slot) -> None:
    """Train a job in this process, which does nothing else.

    Before and after training, a stop signal ends the process at once: there is nothing new to save.

    Raises:
        SystemExit: with EXIT_FAILED, EXIT_BUSY or EXIT_STOPPED, unless the run was trained to the end.
    """
    exit_on_stop_signal()
    _bind(slot)
    _redirect(job)
    try:
        worker.load()(job)
    except Busy:
        sys.exit(EXIT_BUSY)
    except Interrupted as error:
        logging.getLogger(__name__).info("%s", error)
        sys.exit(EXIT_STOPPED)
    except Exception:
        logging.getLogger(__name__).exception("the run failed")
        sys.exit(EXIT_FAILED)


@contextmanager
def _signals_blocked_in_children() -> Iterator[None]:
    """Start children with the stop signals blocked: a queue signals every process, but the server must live on.

    A run also keeps them blocked until it can handle them.
    """
    with stop_signals_blocked():
        resource_tracker.ensure_running()  # otherwise the server starts it, which unblocks some of the signals
        with stop_signals_blocked():
            yield


def _bind(slot: Slot) -> None:
    import torch
    from threadpoolctl import threadpool_limits

    threads = min(slot.threads, threads_of_user() or slot.threads)
    os.environ.update(thread_environment(threads))  # for processes that the run starts
    torch.set_num_threads(threads)
    threadpool_limits(threads)
    if slot.gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(slot.gpus)


def _redirect(job: Job) -> None:
    """Send the output of this process to train.log."""
    job.path.mkdir(parents=True, exist_ok=True)
    file = os.open(job.path / "train.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    sys.stdout, sys.stderr = (os.fdopen(fd, "w", 1, encoding="utf-8", errors="replace", closefd=False) for fd in (1, 2))
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr, force=True
    )
    logging.getLogger("flowdiff").setLevel(logging.INFO)


@contextmanager
def _as_command(worker: Worker, job: Job) -> Iterator[None]:
    """Make the command line of this process name the job: Lightning starts the other ranks with it."""
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
    if (parent := multiprocessing.parent_process()) is not None:
        wait([parent.sentinel])
        os.killpg(os.getpid(), signal.SIGKILL)


def _failure(job: Job, code: int) -> str:
    """Why a run failed: the error that it wrote, which it cannot write on a full disk, or else its exit status."""
    written = job.folder.failure() if code == EXIT_FAILED else None
    if written is not None:
        return written
    error = f"it left no result; see {job.path / 'train.log'}" if code == EXIT_FAILED else _death(code)
    try:
        job.fail(error)
    except RunError as refusal:
        return str(refusal)
    return error


def _death(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"the process was ended by {name}{hint}; running it again continues from its last checkpoint."
    return f"the process ended with exit status {code} and no result."


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
