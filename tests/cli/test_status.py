"""`flowdiff status` and `flowdiff cancel`, with real processes and a fake SLURM."""

import json

import pytest
from cli_process import code
from fake_slurm import FakeSlurm

from flowdiff.cli import cancel, main, status
from flowdiff.errors import RunError
from flowdiff.launch.slurm.submission import Submission, cancelled_jobs, record
from flowdiff.runs.run_folder import RunFolder

OWNER = """
import signal, sys, time
from pathlib import Path
from flowdiff.launch.session import recorded_session
from flowdiff.runs.ownership import owned
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(42))
folder, *runs = sys.argv[1:]
with recorded_session(Path(folder), runs) if runs else owned(Path(folder)):
    print("ready", flush=True)
    time.sleep(60)
"""


def owner(folder, *runs):
    """A process that owns a run folder, or the session of these runs, until SIGTERM; then it exits with status 42."""
    process = code(OWNER, folder, *runs)
    with process.stdout as said:
        assert said.readline() == "ready\n"
    return process


@pytest.fixture
def sweep(tmp_path):
    folder = RunFolder(tmp_path / "s" / "flow.n_flows-1-aaaaaaaa")
    folder.write_config({"trainer": {"max_steps": 1000}})
    folder.metrics.write_text("step,train_loss\n499,0.25\n")
    return tmp_path / "s"


def test_the_table_and_the_json_list_agree(sweep, capsys):
    RunFolder(sweep / "failed-bbbbbbbb").write_config({})
    RunFolder(sweep / "failed-bbbbbbbb").write_failure("the loss [bold] is nan: lower optimizer.lr." + 200 * "!")
    assert status.main([str(sweep)]) == 0
    shown = capsys.readouterr().out
    assert "1 failed, 1 stopped" in shown
    assert "500/1,000" in shown
    assert "0.2500" in shown
    assert "the loss [bold] is nan: lower optimizer.lr." + 200 * "!" in shown  # on one line: no terminal
    assert status.main([str(sweep), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(one["run"], one["state"], one["step"]) for one in listed] == [
        ("failed-bbbbbbbb", "failed", 0),
        ("flow.n_flows-1-aaaaaaaa", "stopped", 500),
    ]


def test_cancel_stops_the_process_of_a_run_or_the_leader_of_a_sweep_but_not_its_runs(sweep, capsys):
    (run,) = sweep.iterdir()
    process = owner(run)
    assert cancel.main([str(sweep)]) == 0
    assert process.wait(30) == 42
    assert f"asked process {process.pid} to stop" in capsys.readouterr().out
    assert cancel.main([str(sweep)]) == 0
    assert "nothing to cancel" in capsys.readouterr().out
    leader, follower = owner(sweep, run.name, "waiting"), owner(run)
    assert cancel.main([str(sweep)]) == 0
    assert leader.wait(30) == 42
    assert capsys.readouterr().out.count("asked process") == 1
    assert follower.poll() is None
    follower.kill()
    follower.wait()


def test_cancel_records_the_queued_jobs_before_it_cancels_them(sweep, tmp_path, monkeypatch, capsys):
    fake = FakeSlurm(tmp_path / "bin")
    monkeypatch.setenv("PATH", fake.path)
    (run,) = sweep.iterdir()
    record(sweep, Submission("7", "", [], None, [["done"], [run.name, "packed"], ["gone"], ["waiting"]]))
    RunFolder(sweep / "done").write_config({})
    RunFolder(sweep / "done").write_result({})
    fake.states(task_7_0="COMPLETED", task_7_1="RUNNING", task_7_3="PENDING")
    fake.refuse("scancel", "scancel: error: Access/permission denied")
    with pytest.raises(RunError, match="scancel refused: scancel: error: Access/permission denied"):
        cancel.main([str(sweep)])
    assert cancelled_jobs(sweep) == {"7_1", "7_3"}
    (fake.folder / "scancel.err").unlink()
    assert cancel.main([str(sweep)]) == 0
    assert capsys.readouterr().out == "cancelled 2 tasks of SLURM job 7\n"
    assert fake.asked[-1] == "scancel 7_1 7_3"
    fake.states()
    status.main([str(sweep), "--json"])
    found = {one["run"]: one["state"] for one in json.loads(capsys.readouterr().out)}
    assert found == {run.name: "stopped", "packed": "stopped", "waiting": "stopped", "gone": "lost", "done": "done"}


def test_cancel_without_slurm_is_one_sentence(sweep, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    record(sweep, Submission("7", "", [], None, [["waiting"]]))
    with pytest.raises(RunError, match=r"repeat this where squeue and scancel work, or cancel 7_0 there\."):
        cancel.main([str(sweep)])


@pytest.mark.parametrize("command", ["status", "cancel", "sync", "report"])
def test_a_missing_folder_is_one_sentence(tmp_path, monkeypatch, capsys, command):
    monkeypatch.setattr("sys.argv", ["flowdiff", command, str(tmp_path / "none")])
    with pytest.raises(SystemExit) as end:
        main()
    stderr = capsys.readouterr().err
    assert (end.value.code, len(stderr.splitlines())) == (2, 1)
    assert "none does not exist" in stderr
