"""The local pool: every job in a process of its own, whatever happens to the others, and a stopped sweep continues."""

import io
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from operator import itemgetter
from pathlib import Path
from unittest.mock import Mock

import pytest
import runs
from cli_process import REAL, TESTS, numbers, start
from rich.console import Console
from sweep_workers import job, jobs, wait_until

from flowdiff.errors import RunError
from flowdiff.launch.local import LocalPool, Worker
from flowdiff.runs.identity import run_id
from flowdiff.runs.job import Job
from flowdiff.runs.ownership import owned, owner

# The server imports the real worker once for all tests of this process.
FAKE = Worker("sweep_workers", "work", (REAL.module, *REAL.preload))


def sweep(given, worker=FAKE, jobs_per_device=2, retry="failed", force=False):
    """The states and notes of the rows, and the output of the sweep."""
    console = Console(file=io.StringIO(), width=200)
    rows = LocalPool(worker, jobs_per_device, console).run(given, retry, force)
    return [row.state for row in rows], [row.note for row in rows], console.file.getvalue()


def attempts(*given):
    paths = [job.path / "attempts" for job in given]
    return [len(path.read_text()) if path.exists() else 0 for path in paths]


def have_begun(given):
    return all((job.path / "pid").exists() for job in given)


@contextmanager
def meanwhile(condition, action) -> Iterator[None]:
    """Call `action` in another thread once the condition holds."""
    thread = threading.Thread(target=lambda: (wait_until(condition), action()))
    thread.start()
    yield
    thread.join()


def interrupted(given, condition, worker=FAKE, number=signal.SIGINT):
    """Run a sweep that receives a signal once the condition holds."""
    stopped = pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit)
    with meanwhile(condition, lambda: os.kill(os.getpid(), number)), stopped:
        sweep(given, worker)


def test_a_failing_run_leaves_a_sentence_and_a_log_and_does_not_stop_the_others(tmp_path):
    given = jobs(tmp_path / "sweep", "sentence", "bug", "killed", "no_result", "finish")
    states, notes, output = sweep(given)
    assert states == ["failed"] * 4 + ["done"]
    assert [job.folder.failure() for job in given] == [*notes[:4], None]
    assert notes[:2] == ["the data is missing: put it there.", "ZeroDivisionError: division by zero"]
    assert "SIGKILL" in notes[2]
    assert "exit status 0 and no result" in notes[3]
    assert all(note in output for note in notes)
    assert "Traceback" in (given[1].path / "train.log").read_text()


def test_the_sweep_reports_a_disk_that_is_too_full_for_the_error(tmp_path, monkeypatch):
    full = "s/a cannot be written: No space left on device; choose another place or make room."
    monkeypatch.setattr(Job, "fail", Mock(side_effect=RunError(full)))
    states, notes, _ = sweep(jobs(tmp_path / "s", "mute", "killed", "finish"))
    assert states == ["failed", "failed", "done"]
    assert notes[:2] == [full, full]


def test_every_run_has_a_process_and_its_threads(tmp_path):
    given = jobs(tmp_path / "sweep", *["finish"] * 3)
    assert sweep(given, jobs_per_device=1)[0] == ["done"] * 3
    results = [job.folder.result() for job in given]
    assert len({result["pid"] for result in results} | {os.getpid()}) == 4
    assert all(1 <= result["threads"] <= len(os.sched_getaffinity(0)) for result in results)
    assert all(result["omp"] == str(result["threads"]) for result in results)


def test_complete_and_equal_runs_are_skipped_and_failed_runs_are_tried_again(tmp_path):
    given = good, bad = jobs(tmp_path / "s", "finish", "sentence")
    for retry, force, states, tried in (
        ("failed", False, ["done", "failed"], [1, 1]),
        ("none", False, ["skipped", "failed"], [1, 1]),
        ("failed", False, ["skipped", "failed"], [1, 2]),
        ("all", False, ["done", "failed"], [2, 3]),
        ("none", True, ["done", "failed"], [3, 4]),
    ):
        found, _, output = sweep(given, retry=retry, force=force)
        assert (found, attempts(good, bad)) == (states, tried), (retry, force)
        if states[0] == "skipped":
            assert "behaviour=finish" in output
            assert "complete; force=true trains it from scratch" in output
    twice = [job(tmp_path / "t" / "run"), job(tmp_path / "t" / "run")]
    assert sorted(sweep(twice)[0]) == ["done", "skipped"]
    assert attempts(twice[0]) == [1]


def test_a_folder_that_another_process_writes_is_left_alone(tmp_path):
    busy, free = jobs(tmp_path / "s", "finish", "finish")
    with owned(busy.path):
        states, _, output = sweep([busy, free])
    assert states == ["busy", "done"]
    assert f"written by process {os.getpid()}" in output
    assert (attempts(busy), busy.folder.failure()) == ([0], None)


def test_gpus_are_assigned_by_cuda_visible_devices(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    given = jobs(tmp_path / "s", "slow", "slow", kind="auto")
    with meanwhile(lambda: have_begun(given), (tmp_path / "s" / "go").touch):  # both run at once
        assert sweep(given, jobs_per_device=1)[0] == ["done", "done"]
    assert [job.folder.result()["gpus"] for job in given] == ["5", "7"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_sweep_leaves_no_process_and_continues_later(tmp_path, number):
    given = jobs(tmp_path / "s", *["slow"] * 3)
    interrupted(given, lambda: have_begun(given[:2]), number=number)
    assert attempts(*given) == [1, 1, 0]
    assert [(owner(job.path), job.folder.failure()) for job in given] == [(None, None)] * 3
    (tmp_path / "s" / "go").touch()
    assert sweep(given)[0] == ["done"] * 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def sweep_elsewhere(cwd: Path, output: str = os.devnull) -> tuple[BaseProcess, tuple[Job, ...]]:
    """A process that sweeps two jobs, once both run, and the jobs."""
    process = start(TESTS / "commands.py", "sweep", "slow", "slow", cwd=cwd, output=(output, output))
    given = jobs(cwd / "s", "slow", "slow")
    wait_until(lambda: have_begun(given))
    return process, given


def test_runs_die_with_a_sweep_that_is_killed(tmp_path):
    process, given = sweep_elsewhere(tmp_path)
    assert all(owner(job.path) for job in given)
    process.kill()
    wait_until(lambda: not any(owner(job.path) for job in given))
    (tmp_path / "s" / "go").touch()
    assert sweep(given)[0] == ["done", "done"]


def test_a_sweep_survives_the_loss_of_its_terminal(tmp_path):
    ours, terminal = os.openpty()
    process, given = sweep_elsewhere(tmp_path, os.ttyname(terminal))
    os.close(terminal)
    assert b"seed" in os.read(ours, 10_000)
    os.close(ours)  # from here on writing to the terminal is an error
    os.kill(process.pid, signal.SIGHUP)
    (tmp_path / "s" / "go").touch()
    process.join(60)
    assert process.exitcode == 0
    assert all(job.folder.is_complete for job in given)


def real_job(sweep: Path, seed: int, *overrides: str) -> Job:
    settings = runs.settings(*runs.TINY, f"seed={seed}", *overrides)
    return Job(settings, sweep / f"seed-{seed}", (f"seed={seed}",), sweep.name)


@pytest.mark.slow
def test_an_interrupted_sweep_of_real_runs_ends_like_an_undisturbed_one(tmp_path):
    steps = ("trainer.max_steps=120", "metrics.every_n_steps=60")
    undisturbed, disturbed = ([real_job(tmp_path / name, seed, *steps) for seed in (1, 2)] for name in "ab")
    assert sweep(undisturbed, REAL)[0] == ["done", "done"]
    interrupted(disturbed, lambda: any(job.folder.progress()[0] > 30 for job in disturbed), REAL)
    stopped = [one for one in disturbed if not one.folder.is_complete]
    assert stopped
    assert set(sweep(disturbed, REAL)[0]) <= {"done", "skipped"}
    assert all("continuing from step" in (one.path / "train.log").read_text() for one in stopped)
    same = itemgetter("run_id", "steps", "parameters", "name", "seed")
    for one, other in zip(disturbed, undisturbed, strict=True):
        result = one.folder.result()
        assert same(result) == same(other.folder.result())
        assert result["run_id"] == run_id(one.config)
        assert numbers(one.folder) == numbers(other.folder)


@pytest.mark.slow
def test_a_distributed_run_stops_and_goes_on_within_a_sweep(tmp_path):
    ddp = ("accelerator=ddp", "accelerator.kind=cpu", "accelerator.devices=2")
    ranks = real_job(tmp_path / "s", 0, "trainer.max_steps=100", "metrics.every_n_steps=50", *ddp)
    interrupted([ranks], lambda: ranks.folder.progress()[0] > 12, REAL)
    log = ranks.path / "train.log"
    assert not ranks.folder.is_complete
    assert "SIGTERM stopped the run after step" in log.read_text()
    assert sweep([ranks], REAL)[0] == ["done"]
    assert ranks.folder.result()["steps"] == 100
    assert "continuing from step" in log.read_text()
