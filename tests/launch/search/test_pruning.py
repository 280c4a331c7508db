"""A run that a search gives up: where it ends, what it leaves, and how it goes on when it is wanted after all."""

import io
import math

import pytest
from optuna.distributions import FloatDistribution
from rich.console import Console
from runs import TINY, settings

from flowdiff.launch.board import Board, Row
from flowdiff.launch.pending import pending
from flowdiff.launch.search.study import Search, Settings
from flowdiff.launch.status import statuses
from flowdiff.runs.identity import run_id
from flowdiff.runs.job import Job
from flowdiff.training import run as training

CONFIG = settings(*TINY)  # 8 steps, looked at every 4
SPACE = {"optimizer.lr": FloatDistribution(1e-4, 1e-2)}


def sweep_with_a_trial_that_nothing_can_beat(path, metric="val_loss"):
    study = Search(path, Settings(5, 1, metric, "minimize", "tpe", 0, "median", 1, 0), SPACE, [])
    unbeaten = study.study.ask(study.space)
    for step in (4, 8):
        unbeaten.report(-1e9, step)
    study.study.tell(unbeaten, -1e9)
    return study


@pytest.mark.parametrize("metric", ["val_loss", "fd_data"])
def test_a_hopeless_run_ends_at_its_first_validation_and_can_go_on(tmp_path, metric):
    study = sweep_with_a_trial_that_nothing_can_beat(tmp_path, metric)
    trial = study.assign(study.ask(), run_id(CONFIG), TINY)
    job = Job(CONFIG, tmp_path / f"run-{run_id(CONFIG)}", tuple(TINY), tmp_path.name)
    assert job.execute(training.train) == {}
    folder = job.folder
    told = folder.pruned()
    assert (told["step"], told["metric"], told["study"]) == (4, metric, study.name)
    assert math.isfinite(told["value"])
    assert not folder.is_complete
    assert folder.failure() is None
    assert folder.checkpoint.is_file()
    assert study.settle(trial)
    assert study.trials()[1].state.name == "PRUNED"
    assert study.trials()[1].intermediate_values == {4: told["value"]}

    assert job.verdict("none", force=False) == "pruned"
    assert job.verdict("failed", force=False) == "run"
    job.prepare(force=False)
    assert folder.pruned() is None
    assert job.execute(training.train)["steps"] == 8  # its trial is closed: nobody ends it any more
    assert folder.is_complete


def test_nobody_starts_a_pruned_run_again_unasked(tmp_path):
    job = Job(CONFIG, tmp_path / "run-12345678", tuple(TINY), tmp_path.name)
    job.folder.write_config(CONFIG)
    job.folder.write_pruned(4, "val_loss", 1.0, "1a2b3c4d")
    row = Row(job.name, job.folder, job.max_steps)
    with Board([row], Console(file=io.StringIO())) as board:
        assert pending([(job, row)], board, "none", force=False) == []
        assert (row.state, row.note) == ("pruned", "before, at step 4")
        assert pending([(job, row)], board, "failed", force=False) == [(job, row)]
    (status,) = statuses(tmp_path)
    assert (status.state, status.note) == ("pruned", "at step 4 by a search")


def test_a_run_of_no_search_beside_a_study_is_left_alone(tmp_path):
    study = sweep_with_a_trial_that_nothing_can_beat(tmp_path)
    study.assign(study.ask(), "12345678", [])
    job = Job(CONFIG, tmp_path / "run", tuple(TINY), tmp_path.name)
    assert job.execute(training.train)["steps"] == 8
