"""The state of every run follows from its folder and SLURM's queue, whichever of them knows it."""

import pytest
from fake_slurm import FakeSlurm
from sweep_workers import sign_lock

from flowdiff.errors import RunError
from flowdiff.launch.session import recorded_session, sessions
from flowdiff.launch.slurm.queue import queued_runs
from flowdiff.launch.slurm.submission import Submission, record, record_cancelled, submissions
from flowdiff.launch.status import statuses
from flowdiff.runs.run_folder import RunFolder

RESUME = "the same command continues from its last checkpoint"


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    fake = FakeSlurm(tmp_path / "bin")
    monkeypatch.setenv("PATH", fake.path)
    return fake


@pytest.fixture
def sweep(tmp_path):
    (tmp_path / "sweep").mkdir()
    return tmp_path / "sweep"


def begun(sweep, name, steps=0, **owner):
    """A run that has begun; with `pid` or `host` it is owned by a process."""
    folder = RunFolder(sweep / name)
    folder.write_config({"trainer": {"max_steps": 100}})
    if steps:
        folder.metrics.write_text(f"step,train_loss\n{steps - 1},0.5\n")
        folder.checkpoint.touch()
    if owner:
        sign_lock(folder.path, **owner)
    return folder


def submit(sweep, job_id, *tasks):
    record(sweep, Submission(job_id, "2030-01-02T03:04:05", [], None, [task.split() for task in tasks]))


def states(sweep):
    return {status.run: status.state for status in statuses(sweep)}


def notes(sweep):
    return {status.run: (status.state, status.note) for status in statuses(sweep)}


def test_runs_of_this_machine_need_no_slurm(sweep, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    begun(sweep, "done", 100).write_result({})
    begun(sweep, "failed").write_failure("it broke: fix it.")
    sign_lock(begun(sweep, "running", 40).path)
    begun(sweep, "stopped", 30)
    begun(sweep, "hardly")
    begun(sweep, "pruned", 20).write_pruned(20, "val_loss", 2.0, "study")
    begun(sweep, "broken").config_file.write_text("[")
    begun(sweep, "older").config_file.write_text("seed: 0\n")
    (sweep / "report").mkdir()
    found = notes(sweep)
    assert found.pop("running")[0] == "running"
    unstarted = ("stopped", "the same command starts it")
    assert found == {
        "done": ("done", ""),
        "failed": ("failed", "it broke: fix it."),
        "stopped": ("stopped", RESUME),
        "pruned": ("pruned", "at step 20 by a search"),
        **dict.fromkeys(("hardly", "broken", "older"), unstarted),
    }
    steps = {status.run: (status.step, status.max_steps, status.loss) for status in statuses(sweep)}
    assert steps["running"] == (40, 100, 0.5)
    assert steps["broken"] == steps["older"] == (0, None, None)
    assert [status.state for status in statuses(sweep / "stopped")] == ["stopped"]


def test_a_live_sweep_has_its_runs_queued_and_a_dead_one_stopped(sweep):
    begun(sweep, "a-1", 30)
    begun(sweep, "a-2").write_result({})
    with recorded_session(sweep, ["a-1", "a-2", "a-3", "a-10"]):
        queued = dict.fromkeys(("a-1", "a-2", "a-3", "a-10"), "queued")
        assert list(states(sweep).items()) == list((queued | {"a-2": "done"}).items())  # in natural order
    assert states(sweep) == dict.fromkeys(queued, "stopped") | {"a-2": "done"}
    with recorded_session(sweep, ["a-4"]):
        assert [session.runs for session in sessions(sweep)] == [["a-4"]]  # the earlier one is deleted
    assert states(sweep) == {"a-1": "stopped", "a-2": "done", "a-4": "stopped"}
    with recorded_session(sweep, ["a-1", "a-2"]):
        assert states(sweep) == {"a-1": "queued", "a-2": "done"}
    assert not (sweep / ".local").exists()  # every run has begun, so the run folders are enough


def test_runs_in_the_queue(sweep, slurm):
    submit(sweep, "7", "pending", "running", "first second", "requeued", "saving")
    slurm.states(task_7_0="PENDING", task_7_1="RUNNING", task_7_2="RUNNING", task_7_3="PENDING", task_7_4="PENDING")
    begun(sweep, "running", 5)
    begun(sweep, "first", 5, host="elsewhere")
    begun(sweep, "requeued", 50)
    sign_lock(begun(sweep, "saving", 50).path)
    in_queue = {"pending": "queued", "running": "running", "first": "running", "requeued": "queued"}
    assert states(sweep) == {**in_queue, "second": "queued", "saving": "running"}  # the first has begun
    assert sum(line.startswith("squeue") for line in slurm.asked) == 1
    assert queued_runs(submissions(sweep)) == {**in_queue, "second": "running", "saving": "queued"}


def test_a_run_whose_job_ended_without_a_result_is_lost(sweep, slurm):
    submit(sweep, "7", "done", "failed", "killed", "forgotten", "unknown", "dead", "again")
    submit(sweep, "8", "again")
    slurm.states(task_7_0="COMPLETED", task_7_2="TIMEOUT", task_7_6="FAILED", task_8_0="PENDING")
    slurm.states("sacct", task_7_3="CANCELLED by 1000", task_7_2="FAILED")
    begun(sweep, "done").write_result({})
    begun(sweep, "failed").write_failure("it broke.")
    begun(sweep, "dead", 5, host="a-host-that-went-down")
    assert notes(sweep) == {
        "done": ("done", ""),
        "failed": ("failed", "it broke."),
        "killed": ("lost", f"job 7_2 ended as TIMEOUT without a result; {RESUME}"),
        "forgotten": ("lost", f"job 7_3 ended as CANCELLED without a result; {RESUME}"),
        "unknown": ("lost", f"job 7_4 ended without a result; {RESUME}"),
        "dead": ("lost", f"job 7_5 ended without a result; {RESUME}"),
        "again": ("queued", "job 8_0"),  # the newest job counts
    }


def test_cancelled_runs_are_stopped_until_they_are_submitted_again(sweep, slurm):
    submit(sweep, "7", "a", "b")
    record_cancelled(sweep, ["7_0", "7_1"])
    slurm.states(task_7_0="CANCELLED")
    assert notes(sweep) == dict.fromkeys("ab", ("stopped", f"cancelled; {RESUME}"))
    submit(sweep, "8", "b")
    assert states(sweep) == {"a": "stopped", "b": "lost"}


@pytest.mark.parametrize("programs", [(), ("squeue",)])
def test_if_slurm_does_not_answer_no_run_is_called_lost(sweep, tmp_path, monkeypatch, programs):
    fake = FakeSlurm(tmp_path / "bin", programs)
    fake.refuse("squeue", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    monkeypatch.setenv("PATH", fake.path)
    submit(sweep, "7", "a", "b", "c")
    begun(sweep, "b").write_result({})
    begun(sweep, "c", host="elsewhere")
    assert states(sweep) == {"a": "submitted", "b": "done", "c": "running"}
    assert queued_runs(submissions(sweep)) is None


def test_a_job_that_slurm_has_forgotten_and_settings_of_the_user_that_do_not_filter_its_answer(
    sweep, slurm, monkeypatch
):
    submit(sweep, "7", "a")
    slurm.refuse("squeue", "slurm_load_jobs error: Invalid job id specified")
    slurm.refuse("sacct", "Slurm accounting storage is disabled")
    assert states(sweep) == {"a": "lost"}
    monkeypatch.setenv("SQUEUE_USERS", "somebody")
    slurm.folder.joinpath("squeue").write_text("#!/bin/sh\n[ -z \"$SQUEUE_USERS\" ] && echo '7_0|RUNNING'\n")
    assert states(sweep) == {"a": "running"}


def test_a_folder_without_runs_is_a_sentence(sweep):
    with pytest.raises(RunError, match="contains no run"):
        statuses(sweep)
    with pytest.raises(RunError, match="does not exist: give the folder of a sweep"):
        statuses(sweep / "none")
