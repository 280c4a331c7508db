"""Every run is in the state that its folder and SLURM's queue say together, whichever of them knows nothing."""

import json
import os
import socket

import pytest
from fake_slurm import FakeSlurm

from flowdiff.errors import RunError
from flowdiff.launch.session import announced, sessions
from flowdiff.launch.slurm.queue import queue_states
from flowdiff.launch.slurm.submission import Submission, cancel, record, submissions
from flowdiff.launch.status import statuses
from flowdiff.runs import lock
from flowdiff.runs.run_folder import RunFolder


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    fake = FakeSlurm(tmp_path / "bin")
    monkeypatch.setenv("PATH", fake.path)
    return fake


@pytest.fixture
def sweep(tmp_path):
    path = tmp_path / "sweep"
    path.mkdir()
    return path


def begun(sweep, name, steps=0):
    folder = RunFolder(sweep / name)
    folder.write_config({"trainer": {"max_steps": 100}})
    if steps:
        folder.metrics.write_text(f"step,train_loss\n{steps - 1},0.5\n")
        folder.checkpoint.touch()
    return folder


def submit(sweep, job_id, *tasks):
    record(sweep, Submission(job_id, "2030-01-02T03:04:05", [], None, [list(task) for task in tasks]))


def states(sweep):
    return {status.run: status.state for status in statuses(sweep)}


def owned(folder, host=None):
    me = {"host": host or socket.gethostname(), "pid": os.getpid(), "born": lock._born(os.getpid())}
    (folder.path / lock.NAME).write_text(json.dumps(me))


def test_runs_of_this_machine_need_no_slurm(sweep, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    begun(sweep, "done", 100).write_result({})
    begun(sweep, "failed").write_failure("it broke: mend it.")
    owned(begun(sweep, "running", 40))
    begun(sweep, "stopped", 30)
    begun(sweep, "hardly")
    begun(sweep, "pruned", 20).write_pruned(20, "val_loss", 2.0, "study")
    (sweep / "report").mkdir()
    found = {status.run: status for status in statuses(sweep)}
    assert {run: status.state for run, status in found.items()} == {
        "done": "done",
        "failed": "failed",
        "running": "running",
        "stopped": "stopped",
        "hardly": "stopped",
        "pruned": "pruned",
    }
    assert (found["running"].step, found["running"].max_steps, found["running"].loss) == (40, 100, 0.5)
    assert found["failed"].note == "it broke: mend it."
    assert "goes on from its last checkpoint" in found["stopped"].note
    assert found["hardly"].note == "the same command starts it"
    assert [status.state for status in statuses(sweep / "stopped")] == ["stopped"]


def test_a_live_sweep_has_its_runs_queued_and_a_dead_one_stopped(sweep):
    begun(sweep, "a-1", 30)
    begun(sweep, "a-2").write_result({})
    with announced(sweep, ["a-1", "a-2", "a-3", "a-10"]):
        assert states(sweep) == {"a-1": "queued", "a-2": "done", "a-3": "queued", "a-10": "queued"}
        assert [status.run for status in statuses(sweep)] == ["a-1", "a-2", "a-3", "a-10"]
    assert states(sweep) == {"a-1": "stopped", "a-2": "done", "a-3": "stopped", "a-10": "stopped"}
    with announced(sweep, ["a-4"]):
        assert [session.runs for session in sessions(sweep)] == [["a-4"]]  # the one before is forgotten
    assert states(sweep) == {"a-1": "stopped", "a-2": "done", "a-4": "stopped"}
    with announced(sweep, ["a-1", "a-2"]):
        assert states(sweep) == {"a-1": "queued", "a-2": "done"}
    assert not (sweep / ".local").exists()  # every run has begun, so the folders tell the rest


def test_runs_in_the_queue(sweep, slurm):
    submit(sweep, "7", ["pending"], ["running"], ["first", "second"], ["requeued"], ["saving"])
    slurm.queue(task_7_0="PENDING", task_7_1="RUNNING", task_7_2="RUNNING", task_7_3="PENDING", task_7_4="PENDING")
    begun(sweep, "running", 5)
    owned(begun(sweep, "first", 5), host="elsewhere")
    begun(sweep, "requeued", 50)
    owned(begun(sweep, "saving", 50))
    assert states(sweep) == {
        "pending": "queued",  # without a folder
        "running": "running",
        "first": "running",
        "second": "queued",  # packed with the first
        "requeued": "queued",
        "saving": "running",
    }
    assert sum(line.startswith("squeue") for line in slurm.asked) == 1
    assert queue_states(submissions(sweep)) == {
        "pending": "queued",
        "running": "running",
        "first": "running",
        "second": "running",
        "requeued": "queued",
        "saving": "queued",
    }


def test_what_left_the_queue_without_a_result_is_lost_and_said_why(sweep, slurm):
    submit(sweep, "7", ["done"], ["failed"], ["killed"], ["forgotten"], ["unheard"], ["dead"])
    slurm.queue(task_7_0="COMPLETED", task_7_2="TIMEOUT")
    slurm.past(task_7_3="CANCELLED by 1000", task_7_2="FAILED")
    begun(sweep, "done").write_result({})
    begun(sweep, "failed").write_failure("it broke.")
    owned(begun(sweep, "dead", 5), host="a-host-that-went-down")
    found = {status.run: (status.state, status.note) for status in statuses(sweep)}
    again = "the same command goes on from its last checkpoint"
    assert found == {
        "done": ("done", ""),
        "failed": ("failed", "it broke."),
        "killed": ("lost", f"job 7_2 ended as TIMEOUT without a result; {again}"),
        "forgotten": ("lost", f"job 7_3 ended as CANCELLED without a result; {again}"),
        "unheard": ("lost", f"job 7_4 ended without a result; {again}"),
        "dead": ("lost", f"job 7_5 ended without a result; {again}"),
    }


def test_the_newest_job_counts(sweep, slurm):
    submit(sweep, "7", ["a"], ["b"])
    submit(sweep, "8", ["b"])
    slurm.queue(task_7_0="FAILED", task_7_1="FAILED", task_8_0="PENDING")
    assert states(sweep) == {"a": "lost", "b": "queued"}


def test_cancelled_runs_are_stopped_until_they_are_submitted_again(sweep, slurm):
    submit(sweep, "7", ["a"], ["b"])
    cancel(sweep, ["7_0", "7_1"])
    slurm.queue(task_7_0="CANCELLED")
    assert states(sweep) == {"a": "stopped", "b": "stopped"}
    assert statuses(sweep)[0].note.startswith("cancelled; the same command")
    submit(sweep, "8", ["b"])
    assert states(sweep) == {"a": "stopped", "b": "lost"}


@pytest.mark.parametrize("programs", [(), ("squeue",)])
def test_without_an_answer_of_slurm_nothing_is_called_lost(sweep, tmp_path, monkeypatch, programs):
    fake = FakeSlurm(tmp_path / "bin", programs)
    fake.refuse("squeue", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    monkeypatch.setenv("PATH", fake.path)
    submit(sweep, "7", ["a"], ["b"], ["c"])
    begun(sweep, "b").write_result({})
    owned(begun(sweep, "c"), host="elsewhere")
    assert states(sweep) == {"a": "submitted", "b": "done", "c": "running"}
    assert queue_states(submissions(sweep)) is None


def test_a_single_job_that_slurm_has_forgotten(sweep, slurm):
    submit(sweep, "7", ["a"])
    slurm.refuse("squeue", "slurm_load_jobs error: Invalid job id specified")
    slurm.refuse("sacct", "Slurm accounting storage is disabled")
    assert states(sweep) == {"a": "lost"}


def test_settings_of_the_user_do_not_filter_the_question(sweep, slurm, monkeypatch):
    monkeypatch.setenv("SQUEUE_USERS", "somebody")
    slurm.folder.joinpath("squeue").write_text("#!/bin/sh\n[ -z \"$SQUEUE_USERS\" ] && echo '7_0|RUNNING'\n")
    submit(sweep, "7", ["a"])
    assert states(sweep) == {"a": "running"}


def test_a_folder_without_runs_is_a_sentence(sweep):
    with pytest.raises(RunError, match="contains no run"):
        statuses(sweep)
    with pytest.raises(RunError, match="does not exist: give the folder of a sweep"):
        statuses(sweep / "none")


def test_a_config_that_cannot_be_read_is_no_reason_to_stop(sweep):
    begun(sweep, "a").config_file.write_text("[")
    begun(sweep, "b").config_file.write_text("seed: 0\n")
    assert [(s.state, s.max_steps) for s in statuses(sweep)] == [("stopped", None), ("stopped", None)]
