"""A task of an array: what it runs, and whether it is started again when it has ended."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from cli_process import TESTS, Started
from sweep_workers import job

from flowdiff.launch.local import BUSY, Worker
from flowdiff.launch.slurm import task as task_module
from flowdiff.launch.slurm.submission import FOLDER, Submission, record
from flowdiff.launch.slurm.task import KILLED, Limits, QueuedJob, Task, seconds
from flowdiff.runs.signals import STOPPED

LIMITS = Limits(signal_delay_s=60, max_timeouts=2, max_kills=1)
HOUR = 3600.0
RUNNING = QueuedJob("RUNNING", "None", 600.0, 10 * HOUR)
LATE = QueuedJob("RUNNING", "None", 10 * HOUR - 100, 10 * HOUR)
ENDED = QueuedJob("COMPLETING", "TimeLimit", 10 * HOUR, 10 * HOUR)
CANCELLED = QueuedJob("COMPLETING", "None", 600.0, 10 * HOUR)


@pytest.fixture
def requeued(monkeypatch):
    """The commands by which a task was put back into the queue."""
    commands: list[list[str]] = []
    monkeypatch.setattr(task_module.subprocess, "run", lambda command, check: commands.append(command))
    return commands


def sweep_of(path: Path, *behaviours: str) -> Task:
    (path / "s" / FOLDER).mkdir(parents=True)
    jobs = tuple(job(path / "s" / f"{b}-{i}", b, seed=i) for i, b in enumerate(behaviours))
    return Task(jobs, Worker("sweep_workers", "work"), LIMITS)


@pytest.mark.parametrize(
    ("status", "now", "times"),
    [
        (STOPPED, RUNNING, 5),  # preempted: always
        (128 + signal.SIGUSR2, RUNNING, 5),  # before it could heed
        (STOPPED, LATE, 2),
        (STOPPED, ENDED, 2),
        (KILLED, RUNNING, 1),
        (128 + signal.SIGSEGV, RUNNING, 1),
        (STOPPED, CANCELLED, 0),
        (KILLED, CANCELLED, 0),
    ],
)
def test_it_is_started_again_as_often_as_its_end_allows(tmp_path, monkeypatch, requeued, status, now, times):
    task = sweep_of(tmp_path, "finish")
    monkeypatch.setattr(QueuedJob, "ask", lambda slurm_job: now)
    for _ in range(5):
        task.ended(status, "7_3")
    assert requeued == [["scontrol", "requeue", "7_3"]] * times
    failure = task.jobs[0].folder.failure()
    if now is CANCELLED or times == 5:
        assert failure is None
    else:
        assert "the same command goes on from its last checkpoint" in failure


def test_the_reasons_are_counted_apart(tmp_path, monkeypatch, requeued):
    task = sweep_of(tmp_path, "finish")
    for now, status in ((RUNNING, KILLED), (LATE, STOPPED), (RUNNING, STOPPED), (LATE, STOPPED)):
        monkeypatch.setattr(QueuedJob, "ask", lambda slurm_job, now=now: now)
        task.ended(status, "7_3")
    assert len(requeued) == 4
    task.ended(KILLED, "7_3")
    assert "ended by SIGKILL 2 times (out of memory?): raise mem_gb" in task.jobs[0].folder.failure()


def test_what_is_over_is_not_started_again(tmp_path, requeued):
    task = sweep_of(tmp_path, "finish", "bug")
    task.jobs[0].folder.write_config({})
    task.jobs[0].folder.write_result({"metrics": {}})
    task.jobs[1].fail("it broke.")
    task.ended(KILLED, "7_3")
    assert requeued == []


def test_a_task_that_ended_for_no_reason_has_failed(tmp_path, requeued):
    task = sweep_of(tmp_path, "finish")
    task.ended(BUSY, "7_3")
    assert task.jobs[0].folder.failure() is None
    task.ended(1, "7_3")
    assert "ended with exit status 1 and no result; see " in task.jobs[0].folder.failure()
    assert "7_3_0_log.err" in task.jobs[0].folder.failure()
    assert requeued == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0:07", 7), ("1:02:03", 3723), ("2-00:00:01", 172801), ("1-0", 86400), ("UNLIMITED", float("inf"))],
)
def test_seconds(text, expected):
    assert seconds(text) == expected


@pytest.mark.parametrize(
    ("used", "limit", "late"),
    [(600, 3600, False), (3600 - 149, 3600, True), (20, 60, True), (HOUR, float("inf"), False)],
)
def test_a_time_limit_is_told_from_a_preemption(used, limit, late):
    assert QueuedJob("RUNNING", "None", used, limit).timed_out(LIMITS) is late


@pytest.mark.parametrize(
    ("behaviours", "status", "complete"),
    [
        (["finish"], 0, [True]),
        (["bug"], 1, [False]),
        (["finish", "finish"], 0, [True, True]),
        (["killed", "finish"], KILLED, [False, True]),
        (["sentence", "finish"], 1, [False, True]),
    ],
)
def test_the_runs_of_a_task_begin_when_it_is_recorded(tmp_path, behaviours, status, complete):
    task = sweep_of(tmp_path, *behaviours)
    array = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "1"}
    with open(os.devnull, "wb") as nowhere:
        process = Started(TESTS / "task_process.py", list(behaviours), tmp_path, nowhere, nowhere, **array)
    assert not any((given.path / "config.yaml").exists() for given in task.jobs)
    record(tmp_path / "s", Submission("7", "2030-01-01T00:00:00", [], None, [[j.path.name for j in task.jobs]]))
    assert process.wait(120) == status
    assert [given.folder.is_complete for given in task.jobs] == complete
    if behaviours[0] == "killed":
        assert task.jobs[0].folder.failure() is None  # it is started again
