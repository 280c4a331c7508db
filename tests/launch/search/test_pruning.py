"""A run that a search ends early: where it ends, what it leaves, and how it continues when it is run again."""

import io
import math
from functools import partial

import pytest
from optuna.distributions import FloatDistribution
from rich.console import Console
from runs import TINY, settings

from flowdiff.launch.board import Board, Row
from flowdiff.launch.pending import pending_jobs
from flowdiff.launch.search.pruning import pruning
from flowdiff.launch.search.study import Search, Settings
from flowdiff.launch.status import statuses
from flowdiff.runs.identity import run_id
from flowdiff.runs.job import Job
from flowdiff.training.run import train

CONFIG = settings(*TINY)  # 8 steps, validated every 4
train_trial = partial(train, more_callbacks=pruning)
SPACE = {"optimizer.lr": FloatDistribution(1e-4, 1e-2)}


def job_in(sweep, name):
    return Job(CONFIG, sweep / name, tuple(TINY), sweep.name)


def study_with_an_unbeatable_trial(path, metric="val_loss"):
    study = Search(path, Settings(5, 1, metric, "minimize", "tpe", 0, "median", 1, 0), SPACE, [])
    unbeaten = study.study.ask(study.space)
    for step in (4, 8):
        unbeaten.report(-1e9, step)
    study.study.tell(unbeaten, -1e9)
    return study


@pytest.mark.parametrize("metric", ["val_loss", "fd_data"])
def test_a_hopeless_run_ends_at_its_first_validation_and_can_continue(tmp_path, metric):
    study = study_with_an_unbeatable_trial(tmp_path, metric)
    trial = study.assign(study.ask(), run_id(CONFIG), TINY)
    job = job_in(tmp_path, f"run-{run_id(CONFIG)}")
    folder = job.folder
    assert job.execute(train_trial) == {}
    pruned = folder.pruned()
    assert (pruned["step"], pruned["metric"], pruned["study"]) == (4, metric, study.name)
    assert math.isfinite(pruned["value"])
    assert (folder.is_complete, folder.failure(), folder.checkpoint.is_file()) == (False, None, True)
    assert study.settle(trial)
    assert study.trials()[1].state.name == "PRUNED"
    assert study.trials()[1].intermediate_values == {4: pruned["value"]}

    job.prepare(force=False)
    assert folder.pruned() is None
    assert job.execute(train_trial)["steps"] == 8  # its trial is closed, so nothing prunes it
    assert folder.is_complete


def test_a_pruned_run_is_run_again_only_with_retry(tmp_path):
    job = job_in(tmp_path, "run-12345678")
    job.folder.write_config(CONFIG)
    job.folder.write_pruned(4, "val_loss", 1.0, "1a2b3c4d")
    row = Row(job.name, job.folder, job.max_steps)
    with Board([row], Console(file=io.StringIO())) as board:
        assert pending_jobs([(job, row)], board, "none", force=False) == []
        assert (row.state, row.note) == ("pruned", "earlier, at step 4")
        assert pending_jobs([(job, row)], board, "failed", force=False) == [(job, row)]
    (status,) = statuses(tmp_path)
    assert (status.state, status.note) == ("pruned", "at step 4 by a search")


def test_a_run_outside_the_search_is_not_pruned(tmp_path):
    study = study_with_an_unbeatable_trial(tmp_path)
    study.assign(study.ask(), "12345678", [])
    assert job_in(tmp_path, "run").execute(train_trial)["steps"] == 8
