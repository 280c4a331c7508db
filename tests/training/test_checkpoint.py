"""A run that is asked to stop by a queue, down to what its tracker hears of it; tests/test_training has the numbers."""

import os
import signal

import pytest
from runs import TINY, train

from flowdiff.loggers.csv import CSVOnly
from flowdiff.runs.job import Interrupted
from flowdiff.runs.run_folder import RunFolder
from flowdiff.training.engine import Engine


def at_step(step, monkeypatch, happen):
    original = Engine.training_step

    def training_step(self, batch, batch_idx):
        if batch_idx == step:
            happen()
        return original(self, batch, batch_idx)

    monkeypatch.setattr(Engine, "training_step", training_step)


@pytest.fixture
def told(monkeypatch):
    """What the tracker was told at the end."""
    heard = []
    monkeypatch.setattr(CSVOnly, "preempting", lambda self: heard.append("preempting"))
    monkeypatch.setattr(CSVOnly, "finish", lambda self, exit_code=0: heard.append(exit_code))
    return heard


@pytest.mark.parametrize(("environment", "expected"), [({"SLURM_JOB_ID": "7"}, ["preempting", 1]), ({}, [1])])
def test_a_run_in_a_queue_says_that_it_goes_on(tmp_path, monkeypatch, told, environment, expected):
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    at_step(3, monkeypatch, lambda: os.kill(os.getpid(), signal.SIGUSR2))
    with pytest.raises(Interrupted, match="SIGUSR2 stopped the run after step 4 of 8"):
        train(tmp_path / "run", *TINY)
    assert told == expected
    assert RunFolder(tmp_path / "run").checkpoint.is_file()


def lost(*args, **kwargs):
    raise ConnectionResetError("Connection lost")


def test_a_tracker_that_the_queue_has_ended_first_is_no_failure(tmp_path, monkeypatch):
    def both_end():
        monkeypatch.setattr(CSVOnly, "finish", lost)
        monkeypatch.setattr("flowdiff.runs.metrics_csv.MetricsCSV.log_metrics", lost)
        os.kill(os.getpid(), signal.SIGTERM)

    at_step(3, monkeypatch, both_end)
    with pytest.raises(Interrupted, match="SIGTERM stopped the run after step 4 of 8"):
        train(tmp_path / "run", *TINY)


def test_a_tracker_that_is_lost_without_being_asked_to_stop_is_one(tmp_path, monkeypatch):
    at_step(3, monkeypatch, lost)
    with pytest.raises(ConnectionResetError):
        train(tmp_path / "run", *TINY)
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL


def test_a_run_that_is_killed_before_it_is_validated_goes_on_from_before(tmp_path, monkeypatch):
    train(tmp_path / "whole", *TINY)
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "on_validation_start", lost, raising=False)
        with pytest.raises(ConnectionResetError):
            train(tmp_path / "halved", *TINY)
    assert not RunFolder(tmp_path / "halved").checkpoint.exists()
    train(tmp_path / "halved", *TINY)
    halved, whole = (RunFolder(tmp_path / name).metrics.read_text().splitlines()[:-1] for name in ("halved", "whole"))
    assert halved == whole  # but for the last row, which holds samples per second
