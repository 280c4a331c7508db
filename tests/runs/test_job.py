"""A job: when it is run, and what an attempt leaves in its folder."""

import os
import pickle
from dataclasses import replace
from unittest.mock import Mock

import pytest
from sweep_workers import job, train

from flowdiff.errors import ConfigurationError, DataError
from flowdiff.runs.job import Interrupted, Job, checked_retry
from flowdiff.runs.ownership import Busy, owned, owner


def test_a_job_can_be_pickled_and_saved(tmp_path):
    given = job(tmp_path / "sweep" / "run")
    given.config["sampler"] = {"s_max": float("inf"), "betas": [0.9, 0.99], "none": None}
    given.save(tmp_path / "job.json")
    assert pickle.loads(pickle.dumps(given)) == given == Job.load(tmp_path / "job.json")


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


def test_prepare_reopens_a_run_and_force_empties_its_folder(tmp_path):
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
    given.folder.begin(given.folder.files_of_run(given.label.run_id))
    assert list(given.path.iterdir()) == [given.folder.config_file]


def test_an_attempt_owns_the_folder(tmp_path):
    given = job(tmp_path / "run")

    def look(*args, **kwargs):
        assert owner(given.path)["pid"] == os.getpid()
        with pytest.raises(Busy):
            given.execute(train)
        return {}

    given.execute(look)
    assert (given.folder.failure(), owner(given.path)) == (None, None)


@pytest.mark.parametrize(
    ("error", "written"),
    [
        (DataError("the data is missing: put it there."), "the data is missing: put it there."),
        (ZeroDivisionError("division by zero\nsecond line"), "ZeroDivisionError: division by zero"),
        (Interrupted("stopped."), None),
        (ConfigurationError("no."), "no."),
    ],
)
def test_an_error_is_written_as_one_sentence(tmp_path, error, written):
    in_sweep, single = job(tmp_path / "sweep" / "run"), replace(job(tmp_path / "run"), sweep=None)
    for given in (in_sweep, single):
        with pytest.raises(type(error)):
            given.execute(Mock(side_effect=error))
    assert in_sweep.folder.failure() == written
    assert written is None or in_sweep.folder.config() == in_sweep.config
    assert list(single.path.iterdir()) == []  # refused before it wrote a config


def test_other_ranks_neither_own_nor_write(tmp_path, monkeypatch):
    lightning = {"LOCAL_RANK": "1", "NODE_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "1"}
    for key, value in lightning.items():
        monkeypatch.setenv(key, value)
    given = job(tmp_path / "run", "bug", devices=2)
    given.folder.write_config(given.config)
    with owned(given.path), pytest.raises(ZeroDivisionError):
        given.execute(train)
    assert given.folder.failure() is None


def test_retry_is_checked():
    assert checked_retry("all") == "all"
    with pytest.raises(ConfigurationError, match="retry=some is not allowed: set it to failed"):
        checked_retry("some")
