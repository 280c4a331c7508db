"""The pool: every job in a fresh process of its own, whatever becomes of the others, and the same command goes on."""

import io
import os
import signal
import threading
import time
from pathlib import Path
from typing import BinaryIO

import pytest
import runs
from cli_process import TESTS, Started
from rich.console import Console
from sweep_workers import config, job

from flowdiff.errors import RunError
from flowdiff.launch.local import LocalPool, Worker
from flowdiff.runs import lock
from flowdiff.runs.identity import run_id
from flowdiff.runs.job import Job
from flowdiff.runs.run_folder import RunFolder

# The server imports the real worker once for all tests of this process.
PRELOAD = ("flowdiff.launch.worker", "sklearn.datasets", "matplotlib.pyplot")
FAKE = Worker("sweep_workers", "work", PRELOAD)
REAL = Worker("flowdiff.launch.worker", "work", PRELOAD)


def sweep(jobs, worker=FAKE, jobs_per_device=2, retry="failed", force=False):
    """The rows of the sweep, and what it said."""
    console = Console(file=io.StringIO(), width=200)
    rows = LocalPool(worker, jobs_per_device, console).run(jobs, retry, force)
    return rows, console.file.getvalue()


def states(rows):
    return [row.state for row in rows]


def attempts(job):
    path = job.path / "attempts"
    return len(path.read_text()) if path.exists() else 0


def wait_until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """One job of each ending, the failing ones first."""
    path = tmp_path_factory.mktemp("multirun") / "sweep"
    behaviours = ["sentence", "bug", "killed", "no_result", "finish"]
    jobs = [job(path / b, b, seed=i) for i, b in enumerate(behaviours)]
    return jobs, *sweep(jobs)


def test_a_failing_run_does_not_stop_the_others(ended):
    _, rows, _ = ended
    assert states(rows) == ["failed", "failed", "failed", "failed", "done"]


def test_every_failure_leaves_a_sentence_and_a_log(ended):
    jobs, rows, said = ended
    sentence, bug, killed, no_result, finish = jobs
    assert sentence.folder.failure() == "the data is not there: put it there."
    assert bug.folder.failure() == "ZeroDivisionError: division by zero"
    assert "SIGKILL" in killed.folder.failure()
    assert "exit status 0 and no result" in no_result.folder.failure()
    assert finish.folder.failure() is None
    for given, row in zip(jobs[:4], rows[:4], strict=True):
        assert row.note == given.folder.failure()
        assert row.note in said
    assert "Traceback" in (bug.path / "train.log").read_text()


def test_a_disk_too_full_for_a_last_word_is_told_by_the_sweep(tmp_path, monkeypatch):
    full = "s/a cannot be written: No space left on device; choose another place or make room."

    def refuse(self, error):
        raise RunError(full)

    monkeypatch.setattr(Job, "fail", refuse)
    rows, _ = sweep([job(tmp_path / "s" / "a", "mute"), job(tmp_path / "s" / "b", "killed"), job(tmp_path / "s" / "c")])
    assert [(row.state, row.note) for row in rows[:2]] == [("failed", full)] * 2
    assert rows[2].state == "done"


def test_every_run_has_a_process_and_its_threads(ended, tmp_path):
    jobs = [job(tmp_path / "sweep" / str(i), seed=i) for i in range(3)]
    rows, _ = sweep(jobs, jobs_per_device=1)
    assert states(rows) == ["done"] * 3
    results = [given.folder.result() for given in jobs]
    assert len({result["pid"] for result in results} | {os.getpid()}) == 4
    cores = len(os.sched_getaffinity(0))
    assert {1 <= result["threads"] <= cores for result in results} == {True}
    assert all(result["omp"] == str(result["threads"]) for result in results)


def test_what_is_complete_is_skipped_and_said_so_and_what_failed_is_tried_again(tmp_path):
    good, bad = job(tmp_path / "s" / "good"), job(tmp_path / "s" / "bad", "sentence")
    expected = {  # (retry, force): states, and attempts of both by then
        ("failed", False): (["done", "failed"], 1, 1),
        ("none", False): (["skipped", "failed"], 1, 1),
        ("failed", "again"): (["skipped", "failed"], 1, 2),
        ("all", False): (["done", "failed"], 2, 3),
        ("none", True): (["done", "failed"], 1, 1),  # everything before is forgotten
    }
    for (retry, force), (after, *tried) in expected.items():
        rows, said = sweep([good, bad], retry=retry, force=force is True)
        assert (states(rows), [attempts(good), attempts(bad)]) == (after, tried), (retry, force)
        if after[0] == "skipped":
            assert "behaviour=finish" in said
            assert "complete; force=true trains it anew" in said


def test_the_same_run_twice_in_a_sweep_runs_once(tmp_path):
    twice = [job(tmp_path / "s" / "run"), job(tmp_path / "s" / "run")]
    rows, _ = sweep(twice)
    assert sorted(states(rows)) == ["done", "skipped"]
    assert attempts(twice[0]) == 1


def test_a_folder_that_another_process_writes_is_left_alone(tmp_path):
    busy, free = job(tmp_path / "s" / "busy"), job(tmp_path / "s" / "free", seed=1)
    with lock.held(busy.path):
        rows, said = sweep([busy, free])
    assert states(rows) == ["busy", "done"]
    assert f"written by process {os.getpid()}" in said
    assert attempts(busy) == 0
    assert busy.folder.failure() is None


def test_gpus_are_bound_by_cuda_visible_devices(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    jobs = []
    for seed in range(2):
        settings = {**config("slow", seed), "accelerator": {"kind": "auto", "devices": 1, "num_nodes": 1}}
        jobs.append(Job(settings, tmp_path / "s" / str(seed), (f"seed={seed}",), "s"))
    # Both run at once: neither goes on before the other has begun.
    release = threading.Thread(
        target=lambda: (wait_until(lambda: all((j.path / "pid").exists() for j in jobs)), (tmp_path / "s/go").touch())
    )
    release.start()
    rows, _ = sweep(jobs, jobs_per_device=1)
    release.join()
    assert states(rows) == ["done", "done"]
    assert [given.folder.result()["gpus"] for given in jobs] == ["5", "7"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_leaves_no_process_and_the_rest_for_later(tmp_path, number):
    jobs = [job(tmp_path / "s" / str(seed), "slow", seed) for seed in range(3)]
    stop = threading.Thread(
        target=lambda: (
            wait_until(lambda: all((j.path / "pid").exists() for j in jobs[:2])),
            os.kill(os.getpid(), number),
        )
    )
    stop.start()
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit):
        sweep(jobs)
    stop.join()
    assert [attempts(given) for given in jobs] == [1, 1, 0]
    assert [lock.owner(given.path) for given in jobs] == [None] * 3
    assert [given.folder.failure() for given in jobs] == [None] * 3
    (tmp_path / "s" / "go").touch()
    rows, _ = sweep(jobs)
    assert states(rows) == ["done"] * 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def started_elsewhere(cwd: Path, output: BinaryIO) -> tuple[Started, list[Job]]:
    """A process that sweeps two jobs, once both run, and the jobs."""
    process = Started(TESTS / "pool_process.py", ["2"], cwd, output, output)
    jobs = [job(cwd / "s" / str(i), "slow", i) for i in range(2)]
    wait_until(lambda: all((j.path / "pid").exists() for j in jobs))
    return process, jobs


def test_runs_die_with_the_sweep_that_is_killed(tmp_path):
    with open(os.devnull, "wb") as nowhere:
        process, jobs = started_elsewhere(tmp_path, nowhere)
    assert all(lock.owner(j.path) for j in jobs)
    process.kill()
    process.wait()
    wait_until(lambda: not any(lock.owner(j.path) for j in jobs))
    (tmp_path / "s" / "go").touch()
    assert states(sweep(jobs)[0]) == ["done", "done"]


def test_a_sweep_outlives_its_terminal(tmp_path):
    ours, terminal = os.openpty()
    with os.fdopen(terminal, "wb", buffering=0) as output:
        process, jobs = started_elsewhere(tmp_path, output)
    assert b"seed" in os.read(ours, 10_000)
    os.close(ours)  # from here on writing to the terminal is an error
    os.kill(process.pid, signal.SIGHUP)
    (tmp_path / "s" / "go").touch()
    assert process.wait(60) == 0
    assert all(j.folder.is_complete for j in jobs)


def real_jobs(path: Path) -> list[Job]:
    jobs = []
    for seed in (1, 2):
        overrides = [*runs.TINY, "trainer.max_steps=120", "metrics.every_n_steps=60", f"seed={seed}"]
        jobs.append(Job(runs.settings(*overrides), path / f"seed-{seed}", (f"seed={seed}",), path.name))
    return jobs


def test_an_interrupted_sweep_of_real_runs_ends_as_an_undisturbed_one(tmp_path):
    undisturbed, disturbed = real_jobs(tmp_path / "a"), real_jobs(tmp_path / "b")
    assert states(sweep(undisturbed, REAL)[0]) == ["done", "done"]
    stop = threading.Thread(
        target=lambda: (
            wait_until(lambda: any(j.folder.progress()[0] > 30 for j in disturbed)),
            os.kill(os.getpid(), signal.SIGINT),
        )
    )
    stop.start()
    with pytest.raises(KeyboardInterrupt):
        sweep(disturbed, REAL)
    stop.join()
    stopped = [given for given in disturbed if not given.folder.is_complete]
    assert stopped
    rows, _ = sweep(disturbed, REAL)
    assert {row.state for row in rows} <= {"done", "skipped"}
    for given, other in zip(disturbed, undisturbed, strict=True):
        assert "going on from step" in (given.path / "train.log").read_text() or given not in stopped
        mine, theirs = given.folder.result(), other.folder.result()
        for key in ("run_id", "steps", "parameters", "name", "seed"):
            assert mine[key] == theirs[key]
        assert mine["run_id"] == run_id(given.config)
        assert numbers(mine) == numbers(theirs)
        assert rows_without_speed(given.folder) == rows_without_speed(other.folder)


@pytest.mark.slow
def test_a_distributed_run_stops_and_goes_on_within_a_sweep(tmp_path):
    overrides = [*(o for o in runs.TINY if not o.startswith("accelerator")), "accelerator=ddp", "accelerator.kind=cpu"]
    overrides += ["accelerator.devices=2", "trainer.max_steps=100", "metrics.every_n_steps=50"]
    given = Job(runs.settings(*overrides), tmp_path / "s" / "run", ("seed=0",), "s")
    stop = threading.Thread(
        target=lambda: (wait_until(lambda: given.folder.progress()[0] > 12), os.kill(os.getpid(), signal.SIGINT))
    )
    stop.start()
    with pytest.raises(KeyboardInterrupt):
        sweep([given], REAL)
    stop.join()
    assert not given.folder.is_complete
    assert "SIGTERM stopped the run after step" in (given.path / "train.log").read_text()
    rows, _ = sweep([given], REAL)
    assert states(rows) == ["done"]
    assert given.folder.result()["steps"] == 100
    assert "going on from step" in (given.path / "train.log").read_text()


def numbers(result):
    return {key: value for key, value in result["metrics"].items() if key != "samples_per_second"}


def rows_without_speed(folder: RunFolder):
    import csv

    with folder.metrics.open() as file:
        timed = ("samples_per_second", "train_seconds")
        return [{k: v for k, v in row.items() if k not in timed} for row in csv.DictReader(file)]
