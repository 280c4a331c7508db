"""A run that is stopped or refused, at whatever moment, says how it goes on, and keeps what it has."""

import signal
from unittest.mock import Mock

import pytest
from runs import TINY, send, settings, train

from flowdiff.errors import DataError, RunError
from flowdiff.evaluation.metrics import Metrics
from flowdiff.loggers.csv import CSVOnly
from flowdiff.runs.identity import label_of_folder
from flowdiff.runs.job import Interrupted, Job
from flowdiff.runs.run_folder import RunFolder
from flowdiff.runs.signals import EXIT_STOPPED, exiting_on_stop_signals
from flowdiff.training.engine import Engine
from flowdiff.training.run import train as train_run


def job(folder, *overrides, original=None):
    return Job(settings(*TINY, *overrides), folder, (*TINY, *overrides), None, original)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGUSR2])
def test_a_run_saves_when_it_is_asked_to_stop(tmp_path, at_step, number):
    at_step(2, send(number))
    with pytest.raises(
        Interrupted, match=rf"{number.name} stopped the run after step 3 of 8; continue with"
    ) as stopped:
        train(tmp_path, *TINY)
    assert stopped.value.exit_status == 128 + number
    assert RunFolder(tmp_path).checkpoint.is_file()


def test_nohup_is_respected(tmp_path, at_step):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        at_step(2, send(signal.SIGHUP))
        train(tmp_path, *TINY)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert RunFolder(tmp_path).is_complete


def test_a_second_ctrl_c_says_how_to_continue(tmp_path, at_step):
    at_step(5, send(signal.SIGINT, signal.SIGINT))
    with pytest.raises(Interrupted, match="stopped; continue with: python train") as stopped:
        train(tmp_path, *TINY)
    assert stopped.value.exit_status == 130
    assert RunFolder(tmp_path).progress()[0] == 5  # the last checkpoint is of step 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_stopped_in_its_evaluation_ends_at_once(tmp_path, monkeypatch, number):
    handler = signal.getsignal(number)
    with monkeypatch.context() as patch, exiting_on_stop_signals():
        patch.setattr(Metrics, "evaluate", send(number))
        with pytest.raises(Interrupted, match="stopped; continue with: python train") as stopped:
            job(tmp_path).execute(train_run)
    assert stopped.value.exit_status == EXIT_STOPPED
    assert signal.getsignal(number) is handler
    assert not RunFolder(tmp_path).is_complete
    assert job(tmp_path).execute(train_run)["steps"] == 8


def test_what_refuses_a_run_late_costs_no_results(tmp_path, monkeypatch):
    first = job(tmp_path, "seed=1")
    first.execute(train_run)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for target, name in ((Engine, "measure"), (CSVOnly, "start")):  # missing data, W&B
        with monkeypatch.context() as patch:
            patch.setattr(target, name, Mock(side_effect=DataError("it is not there.")))
            first.prepare(force=True)
            with pytest.raises(DataError):
                first.execute(train_run)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert first.verdict("failed", force=False) == "complete"
    first.prepare(force=True)
    (tmp_path / "metrics.csv").write_text("step,old\n0,1\n")
    assert first.execute(train_run)["steps"] == 8
    assert "old" not in (tmp_path / "metrics.csv").read_text()
    assert not first.folder.reopened_file.exists()


def test_a_resumed_run_keeps_its_name(tmp_path, at_step, monkeypatch):
    folder = tmp_path / "run"
    at_step(2, send(signal.SIGINT))
    first = job(folder, "seed=1", "flow.n_flows=2")
    with pytest.raises(Interrupted):
        first.execute(train_run)
    started = []
    monkeypatch.setattr(CSVOnly, "start", lambda self, folder, run: started.append(run) or [])
    at_step(9, send())
    resumed = Job(first.config, folder, ("resume=run",), None, label_of_folder(RunFolder(folder)))
    result = resumed.execute(train_run)
    assert result["name"] == started[0]["name"] == first.name
    assert (result["overrides"], result["run_id"]) == (list(first.overrides), started[0]["run_id"])
    assert started[0]["resumed"]


def test_a_run_does_not_continue_from_the_checkpoint_of_another(tmp_path, at_step):
    at_step(2, send(signal.SIGTERM))
    with pytest.raises(Interrupted):
        job(tmp_path, "seed=1").execute(train_run)
    with pytest.raises(RunError, match="seed is 1 there and 2 here"):
        job(tmp_path, "seed=2").execute(train_run)
    assert RunFolder(tmp_path).config()["seed"] == 1
