"""A task of an array job: what it runs, and whether it is started again when it has ended."""

import signal
from math import inf
from pathlib import Path

import pytest
from cli_process import TESTS, start
from sweep_workers import LIMITS, WORKER, jobs

from flowdiff.launch.local import EXIT_BUSY
from flowdiff.launch.slurm import task as task_module
from flowdiff.launch.slurm.submission import FOLDER, Submission, record
from flowdiff.launch.slurm.task import EXIT_KILLED, QueuedJob, Task, seconds
from flowdiff.runs.signals import EXIT_STOPPED

HOUR = 3600.0
RUNNING = QueuedJob("RUNNING", "None", 600.0, 10 * HOUR)
LATE = QueuedJob("RUNNING", "None", 10 * HOUR - 100, 10 * HOUR)
ENDED = QueuedJob("COMPLETING", "TimeLimit", 10 * HOUR, 10 * HOUR)
CANCELLED = QueuedJob("COMPLETING", "None", 600.0, 10 * HOUR)


@pytest.fixture
def requeued(monkeypatch):
    """The commands that requeued a task."""
    commands: list[list[str]] = []
    monkeypatch.setattr(task_module.subprocess, "run", lambda command, check: commands.append(command))
    return commands


def make_task(path: Path, *behaviours: str) -> Task:
    (path / "s" / FOLDER).mkdir(parents=True)
    return Task(jobs(path / "s", *behaviours), WORKER, LIMITS)


@pytest.mark.parametrize(
    ("status", "now", "times"),
    [
        (EXIT_STOPPED, RUNNING, 5),  # preempted: always
        (128 + signal.SIGUSR2, RUNNING, 5),  # before it could handle the signal
        (EXIT_STOPPED, LATE, 2),
        (EXIT_STOPPED, ENDED, 2),
        (EXIT_KILLED, RUNNING, 1),
        (128 + signal.SIGSEGV, RUNNING, 1),
        (EXIT_STOPPED, CANCELLED, 0),
        (EXIT_KILLED, CANCELLED, 0),
    ],
)
def test_a_task_is_requeued_as_often_as_the_reason_for_its_end_allows(
    tmp_path, monkeypatch, requeued, status, now, times
):
    task = make_task(tmp_path, "finish")
    monkeypatch.setattr(QueuedJob, "query", lambda slurm_job: now)
    for _ in range(5):
        task.finish(status, "7_3")
    assert requeued == [["scontrol", "requeue", "7_3"]] * times
    failure = task.jobs[0].folder.failure()
    if now is CANCELLED or times == 5:
        assert failure is None
    else:
        assert "the same command continues from its last checkpoint" in failure


def test_each_reason_has_its_own_count(tmp_path, monkeypatch, requeued):
    task = make_task(tmp_path, "finish")
    for now, status in ((RUNNING, EXIT_KILLED), (LATE, EXIT_STOPPED), (RUNNING, EXIT_STOPPED), (LATE, EXIT_STOPPED)):
        monkeypatch.setattr(QueuedJob, "query", lambda slurm_job, now=now: now)
        task.finish(status, "7_3")
    assert len(requeued) == 4
    task.finish(EXIT_KILLED, "7_3")
    assert "ended by SIGKILL 2 times (out of memory?): raise mem_gb" in task.jobs[0].folder.failure()


def test_a_task_without_unfinished_runs_or_without_a_signal_is_not_requeued(tmp_path, requeued):
    task = make_task(tmp_path / "ended", "finish", "bug")
    task.jobs[0].folder.write_config(task.jobs[0].config)
    task.jobs[0].folder.write_result({"metrics": {}})
    task.jobs[1].fail("it broke.")
    task.finish(EXIT_KILLED, "7_3")
    task = make_task(tmp_path, "finish")
    task.finish(EXIT_BUSY, "7_3")
    assert task.jobs[0].folder.failure() is None
    task.finish(1, "7_3")
    assert "ended with exit status 1 and no result; see " in task.jobs[0].folder.failure()
    assert "7_3_0_log.err" in task.jobs[0].folder.failure()
    assert requeued == []


def test_seconds():
    expected = {"0:07": 7, "1:02:03": 3723, "2-00:00:01": 172801, "1-0": 86400, "UNLIMITED": inf}
    assert {text: seconds(text) for text in expected} == expected


def test_a_time_limit_is_distinguished_from_a_preemption():
    expected = {(600, 3600): False, (3600 - 149, 3600): True, (20, 60): True, (HOUR, inf): False}  # used, limit
    assert {given: QueuedJob("RUNNING", "None", *given).timed_out(LIMITS) for given in expected} == expected


@pytest.mark.parametrize(
    ("behaviours", "status", "complete"),
    [
        (["finish"], 0, [True]),
        (["bug"], 1, [False]),
        (["finish", "finish"], 0, [True, True]),
        (["killed", "finish"], EXIT_KILLED, [False, True]),
        (["sentence", "finish"], 1, [False, True]),
    ],
)
def test_the_runs_of_a_task_begin_when_it_is_recorded(tmp_path, behaviours, status, complete):
    task = make_task(tmp_path, *behaviours)
    array = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "1"}
    process = start(TESTS / "commands.py", "task", *behaviours, cwd=tmp_path, **array)
    assert not any(job.path.exists() for job in task.jobs)
    record(tmp_path / "s", Submission("7", "2030-01-01T00:00:00", [], None, [[job.path.name for job in task.jobs]]))
    process.join(120)
    assert process.exitcode == status
    assert [job.folder.is_complete for job in task.jobs] == complete
    if behaviours[0] == "killed":
        assert task.jobs[0].folder.failure() is None  # it is started again
