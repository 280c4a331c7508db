"""A study in a file: what it asks for, what it learns from run folders, and what the process of a run sees of it."""

import json
import sys
from dataclasses import asdict, replace

import pytest
from cli_process import python
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from flowdiff.errors import ConfigurationError, RunError
from flowdiff.launch.search.study import OpenTrial, Search, Settings, last_value, require_optuna
from flowdiff.runs.run_folder import RunFolder

SETTINGS = Settings(20, 4, "val_loss", "minimize", "tpe", 0, "median", 1, 0)
SPACE = {
    "lr": FloatDistribution(1e-4, 1e-2, log=True),
    "n": IntDistribution(1, 5),
    "act": CategoricalDistribution("ab"),
}


def search(path, space=SPACE, fixed=("seed=1",), **settings):
    path.mkdir(exist_ok=True)
    return Search(path, replace(SETTINGS, **settings), space, fixed)


def ended(study, run, value=None, pruned=None, error=None):
    """A run folder as training leaves it."""
    folder = RunFolder(study.sweep / f"some-words-{run}")
    folder.path.mkdir()
    if value is not None:
        folder.metrics.write_text(f"step,train_loss,val_loss\n0,1.0,7.0\n1,1.0,{value}\n2,0.5,\n")
        folder.write_result({"metrics": {}})
    if pruned is not None:
        folder.write_pruned(10, "val_loss", 1.0, pruned)
    if error is not None:
        folder.write_failure(error)
    return folder


def trials_with(study, *values):
    """Ask for a trial per value and complete it; a value may be a function of the parameters."""
    for value in values:
        run = f"{len(study.trials()):08}"
        trial = study.assign(study.ask(), run, [])
        ended(study, run, value(trial.params) if callable(value) else value)
        assert study.settle(trial)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("n_trials", 0, "n_trials=0 is not allowed: input should be greater than 0"),
        ("n_jobs", "2", "n_jobs=2 is not allowed: input should be a valid integer"),
        ("direction", "up", "direction=up is not allowed: input should be 'minimize' or 'maximize'"),
        ("pruner", "asha", "pruner=asha is not allowed: input should be 'median' or 'none'"),
        ("cases", ["a=1"], "hydra.sweeper.cases=.* is not allowed: unexpected"),
    ],
)
def test_bad_settings_are_a_sentence(key, value, message):
    with pytest.raises(ConfigurationError, match=message):
        Settings.checked({**asdict(SETTINGS), key: value})


def test_without_optuna_a_sentence_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigurationError, match=r"pip install -e '\.\[optuna\]'"):
        require_optuna()


def test_only_searches_import_optuna(tmp_path):
    probe = tmp_path / "probe.py"
    probe.write_text(
        "import sys; from pathlib import Path; from flowdiff.launch.search.study import OpenTrial\n"
        "assert OpenTrial.find(Path(), '12345678') is None\nprint('optuna' in sys.modules)"
    )
    done = python(probe, cwd=tmp_path)  # in an interpreter that has imported training, sampling and the sweeper, too
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_an_interrupted_search_asks_for_what_it_would_have_asked_for(tmp_path, sampler):
    asked = []
    for interrupted in (False, True):
        path = tmp_path / str(interrupted)
        study = search(path, sampler=sampler)
        for _ in range(12):
            study = search(path, sampler=sampler) if interrupted else study
            trials_with(study, lambda params: 1 / (1 + params["n"]) + params["lr"])
        asked.append([trial.params for trial in study.trials()])
    assert asked[0] == asked[1]
    assert search(tmp_path / "other", sampler=sampler, seed=1).ask().params not in asked[0]  # the seed decides
    assert len({tuple(params.values()) for params in asked[0]}) == 12


def test_another_space_metric_or_fixed_override_is_another_study(tmp_path):
    one = search(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["study.journal"]
    assert all(json.loads(line) for line in (tmp_path / "study.journal").read_text().splitlines())
    trials_with(one, 1.0)
    assert len(search(tmp_path, pruner="none", n_trials=30, seed=3).trials()) == 1
    for other in (
        search(tmp_path, metric="fd_data"),
        search(tmp_path, direction="maximize"),
        search(tmp_path, space={**SPACE, "n": IntDistribution(1, 6)}),
        search(tmp_path, fixed=("seed=2",)),
    ):
        assert other.trials() == []
    one.delete_trials()
    assert search(tmp_path).trials() == []


def test_the_outcome_of_a_run_is_read_from_its_folder(tmp_path):
    study = search(tmp_path)
    outcomes = {  # what its folder contains; the state and value of its trial
        "complete": ({"value": 0.25}, "COMPLETE", 0.25),
        "nan": ({"value": "nan"}, "FAIL", None),
        "pruned": ({"pruned": study.name}, "PRUNED", None),
        "pruned_by_another": ({"pruned": "another"}, "RUNNING", None),
        "failed": ({"error": "no data"}, "FAIL", None),
        "running": ({}, "RUNNING", None),
        "not_begun": (None, "RUNNING", None),
    }
    trials = {run: study.assign(study.ask(), run, []) for run in outcomes}
    for run, (content, _, _) in outcomes.items():
        if content is not None:
            ended(study, run, **content)
    assert [run for run in trials if study.has_ended(run)] == ["complete", "nan", "pruned"]
    assert [run for run, trial in trials.items() if study.settle(trial)] == ["complete", "nan", "pruned", "failed"]
    found = {trial.user_attrs["run"]: (trial.state.name, trial.value) for trial in study.trials()}
    assert found == {run: tuple(expected) for run, (_, *expected) in outcomes.items()}
    assert [trial.user_attrs["run"] for trial in study.failed()] == ["nan", "failed"]
    again = study.assign(study.ask(trials["failed"].params), "failed", [])
    assert again.params == trials["failed"].params
    assert [trial.user_attrs["run"] for trial in study.failed()] == ["nan"]  # the last trial of that run is open


def test_the_best_trial_is_the_best(tmp_path):
    for direction, best in (("minimize", 0.25), ("maximize", 2.0)):
        study = search(tmp_path / direction, direction=direction)
        assert study.best() is None
        trials_with(study, 1.0, 0.25, 2.0)
        assert study.best().value == best


def test_a_metric_that_was_not_measured_is_a_sentence(tmp_path):
    folder = ended(search(tmp_path), "run", 0.25)
    assert last_value(folder, "val_loss") == 0.25  # the last value, not the last cell
    with pytest.raises(RunError, match=r"metric=fd was not measured: .* has train_loss, val_loss; choose one"):
        last_value(folder, "fd")


def test_importances_name_the_parameter_that_matters(tmp_path):
    study = search(tmp_path, sampler="random")
    assert study.importances() == {}
    trials_with(study, *[lambda params: params["n"] + 1e-3 * params["lr"]] * 30)
    shares = study.importances()
    assert set(shares) == set(SPACE)
    assert sum(shares.values()) == pytest.approx(1)
    assert max(shares, key=shares.get) == "n"


def study_with_a_curve(path, **settings):
    """A study with a complete trial, "00000000", whose metric was 1.0 at step 10 and 0.5 at step 20."""
    study = search(path, **settings)
    trial = study.assign(study.ask(), "00000000", [])
    seen = OpenTrial.find(path, "00000000")
    for step, value in ((10, 1.0), (20, 0.5)):
        seen.should_prune(step, value)
    ended(study, "00000000", 0.5)
    study.settle(trial)
    return study


def test_a_run_finds_its_trial_and_learns_that_it_is_hopeless(tmp_path):
    assert OpenTrial.find(tmp_path, "00000001") is None  # no study at all
    study = study_with_a_curve(tmp_path)
    assert OpenTrial.find(tmp_path, "00000000") is None  # it has ended
    study.assign(study.ask(), "00000001", [])
    study.assign(study.ask(), "00000002", [])
    assert OpenTrial.find(tmp_path, "00000003") is None
    good, bad = OpenTrial.find(tmp_path, "00000001"), OpenTrial.find(tmp_path, "00000002")
    assert (good.metric, good.study) == ("val_loss", study.name)
    assert not good.should_prune(10, 0.9)
    assert bad.should_prune(10, 1.1)
    resumed = OpenTrial.find(tmp_path, "00000002")
    assert resumed.should_prune(10, 1.1)  # it would warn if it reported twice, and warnings are errors
    assert study.trials()[2].intermediate_values == {10: 1.1}


@pytest.mark.parametrize(
    "settings", [{"pruner": "none"}, {"startup_trials": 2}, {"warmup_steps": 11}, {"direction": "maximize"}]
)
def test_no_run_is_pruned_with(tmp_path, settings):
    study = study_with_a_curve(tmp_path, **settings)
    study.assign(study.ask(), "00000001", [])
    assert not OpenTrial.find(tmp_path, "00000001").should_prune(10, 1.1)
