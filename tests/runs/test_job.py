"""A job: what is to be done with a folder, and what an attempt leaves in it."""

import os
import pickle

import pytest
import sweep_workers
from sweep_workers import job, train

from flowdiff.errors import ConfigurationError, DataError
from flowdiff.runs import job as job_module
from flowdiff.runs import lock
from flowdiff.runs.job import Interrupted, checked_retry


def test_it_travels(tmp_path):
    given = job(tmp_path / "sweep" / "run")
    given.config["sampler"] = {"s_max": float("inf"), "betas": [0.9, 0.99], "none": None}
    assert pickle.loads(pickle.dumps(given)) == given
    given.save(tmp_path / "job.json")
    assert job_module.Job.load(tmp_path / "job.json") == given


@pytest.mark.parametrize(
    ("state", "retry", "force", "verdict"),
    [
        ("new", "none", False, "run"),
        ("half", "none", False, "run"),
        ("complete", "failed", False, "complete"),
        ("complete", "none", False, "complete"),
        ("complete", "all", False, "run"),
        ("complete", "failed", True, "run"),
        ("failed", "failed", False, "run"),
        ("failed", "all", False, "run"),
        ("failed", "none", False, "failed"),
        ("failed", "none", True, "run"),
    ],
)
def test_verdict(tmp_path, state, retry, force, verdict):
    given = job(tmp_path / "run")
    if state != "new":
        given.folder.write_config(given.config)
    if state == "complete":
        given.folder.write_result({})
    if state == "failed":
        given.fail("it broke.")
    assert given.verdict(retry, force) == verdict


def test_prepare_takes_back_the_end_and_force_takes_all(tmp_path):
    given = job(tmp_path / "run")
    given.prepare(force=True)
    assert not given.path.exists()
    given.folder.write_config(given.config)
    given.folder.checkpoint.touch()
    given.folder.write_result({})
    given.fail("it broke.")
    given.prepare(force=False)
    assert (given.folder.is_complete, given.folder.failure()) == (False, None)
    assert given.folder.checkpoint.exists()
    given.prepare(force=True)
    assert list(given.path.iterdir()) == []


def test_an_attempt_is_the_only_one(tmp_path):
    given = job(tmp_path / "run")

    def look(*args, **kwargs):
        assert lock.owner(given.path)["pid"] == os.getpid()
        with pytest.raises(lock.Busy):
            given.execute(train)
        return {}

    given.execute(look)
    assert given.folder.failure() is None
    assert lock.owner(given.path) is None


@pytest.mark.parametrize(
    ("behaviour", "error", "left"),
    [
        ("sentence", DataError, "the data is not there: put it there."),
        ("bug", ZeroDivisionError, "ZeroDivisionError: division by zero"),
    ],
)
def test_an_error_is_left_as_one_sentence(tmp_path, behaviour, error, left):
    given = job(tmp_path / "run", behaviour)
    with pytest.raises(error):
        given.execute(train)
    assert given.folder.failure() == left
    assert given.folder.config() == given.config


def test_an_interruption_is_no_failure(tmp_path):
    def interrupted(*args, **kwargs):
        raise Interrupted("stopped.")

    given = job(tmp_path / "run")
    with pytest.raises(Interrupted):
        given.execute(interrupted)
    assert given.folder.failure() is None


def test_a_refused_job_of_a_sweep_is_visible_and_a_refused_single_run_leaves_nothing(tmp_path):
    def refused(*args, **kwargs):
        raise ConfigurationError("no.")

    in_sweep = job(tmp_path / "sweep" / "run")
    single = job_module.Job(sweep_workers.config(), tmp_path / "run", ())
    for given in (in_sweep, single):
        with pytest.raises(ConfigurationError):
            given.execute(refused)
    assert in_sweep.folder.config_file.exists()
    assert in_sweep.folder.failure() == "no."
    assert list(single.path.iterdir()) == []


def test_other_ranks_neither_lock_nor_write(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    given = job(tmp_path / "run", "bug")
    given.folder.write_config(given.config)
    with lock.held(given.path), pytest.raises(ZeroDivisionError):
        given.execute(train)
    assert given.folder.failure() is None


def test_retry_is_checked():
    assert checked_retry("all") == "all"
    with pytest.raises(ConfigurationError, match="retry=some is not allowed: take failed"):
        checked_retry("some")
