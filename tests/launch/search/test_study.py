"""A study in a file: what it asks for, what it learns from run folders, and what the process of a run sees of it."""

import json
import sys
from dataclasses import asdict, replace

import pytest
from cli_process import python
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from flowdiff.errors import ConfigurationError, RunError
from flowdiff.launch.search.study import OpenTrial, Search, Settings, measured, needed
from flowdiff.runs.run_folder import RunFolder

SETTINGS = Settings(20, 4, "val_loss", "minimize", "tpe", 0, "median", 1, 0)
SPACE = {
    "lr": FloatDistribution(1e-4, 1e-2, log=True),
    "n": IntDistribution(1, 5),
    "act": CategoricalDistribution("ab"),
}


def search(path, settings=SETTINGS, space=SPACE, fixed=("seed=1",)):
    return Search(path, settings, space, fixed)


def ended(path, run, value=None, pruned=None, error=None):
    """A run folder as training leaves it."""
    folder = RunFolder(path / f"some-words-{run}")
    folder.path.mkdir()
    if value is not None:
        folder.metrics.write_text(f"step,train_loss,val_loss\n0,1.0,7.0\n1,1.0,{value}\n2,0.5,\n")
        folder.write_result({"metrics": {}})
    if pruned is not None:
        folder.write_pruned(10, "val_loss", 1.0, pruned)
    if error is not None:
        folder.write_failure(error)
    return folder


def with_values(study, path, values):
    """Trials that have come to these values."""
    for i, value in enumerate(values):
        trial = study.assign(study.ask(), f"{i:08}", [f"number={i}"])
        ended(path, f"{i:08}", value)
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
        needed()


def test_optuna_is_imported_by_searches_only(tmp_path):
    probe = tmp_path / "probe.py"
    probe.write_text(
        "import sys, hydra_plugins.flowdiff, flowdiff.cli.search\n"
        "from flowdiff.launch.search.pruning import pruning\nfrom flowdiff.runs.run_folder import RunFolder\n"
        "assert pruning(RunFolder('run'), '12345678') == []\nprint('optuna' in sys.modules)"
    )
    done = python(probe, cwd=tmp_path)  # by an interpreter that has imported all of training and sampling, too
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_an_interrupted_search_asks_for_what_it_would_have_asked_for(tmp_path, sampler):
    settings = replace(SETTINGS, sampler=sampler)
    asked = {}
    for name in ("whole", "halved"):
        (tmp_path / name).mkdir()
        study = search(tmp_path / name, settings)
        for i in range(12):
            if name == "halved":
                study = search(tmp_path / name, settings)
            trial = study.assign(study.ask(), f"{i:08}", [])
            ended(tmp_path / name, f"{i:08}", 1 / (1 + trial.params["n"]) + trial.params["lr"])
            study.settle(trial)
        asked[name] = [trial.params for trial in study.trials()]
    assert asked["whole"] == asked["halved"]
    assert len({tuple(params.values()) for params in asked["whole"]}) == 12


def test_the_seed_decides_what_is_asked_for(tmp_path):
    params = []
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        params.append(search(tmp_path / str(seed), replace(SETTINGS, seed=seed)).ask().params)
    assert params[0] != params[1]


def test_another_question_is_another_study_and_the_pruner_is_no_question(tmp_path):
    one = search(tmp_path)
    with_values(one, tmp_path, [1.0])
    assert len(search(tmp_path, replace(SETTINGS, pruner="none", n_trials=30, seed=3)).trials()) == 1
    for other in (
        search(tmp_path, replace(SETTINGS, metric="fd_data")),
        search(tmp_path, replace(SETTINGS, direction="maximize")),
        search(tmp_path, space={**SPACE, "n": IntDistribution(1, 6)}),
        search(tmp_path, fixed=("seed=2",)),
    ):
        assert other.trials() == []
    one.begin_anew()
    assert search(tmp_path).trials() == []


def test_what_became_of_a_run_is_read_from_its_folder(tmp_path):
    study = search(tmp_path)
    trials = {
        run: study.assign(study.ask(), run, [])
        for run in ("complete", "nan", "pruned", "pruned_by_another", "failed", "running", "not_begun")
    }
    ended(tmp_path, "complete", 0.25)
    ended(tmp_path, "nan", "nan")
    ended(tmp_path, "pruned", pruned=study.name)
    ended(tmp_path, "pruned_by_another", pruned="another")
    ended(tmp_path, "failed", error="no data")
    ended(tmp_path, "running")
    assert [run for run in trials if study.has_ended(run)] == ["complete", "nan", "pruned"]
    assert [run for run, trial in trials.items() if study.settle(trial)] == ["complete", "nan", "pruned", "failed"]
    states = {trial.user_attrs["run"]: (trial.state.name, trial.value) for trial in study.trials()}
    assert states == {
        "complete": ("COMPLETE", 0.25),
        "nan": ("FAIL", None),
        "pruned": ("PRUNED", None),
        "pruned_by_another": ("RUNNING", None),
        "failed": ("FAIL", None),
        "running": ("RUNNING", None),
        "not_begun": ("RUNNING", None),
    }
    assert [trial.user_attrs["run"] for trial in study.failed()] == ["nan", "failed"]
    again = study.assign(study.ask(trials["failed"].params), "failed", [])
    assert again.params == trials["failed"].params
    assert [trial.user_attrs["run"] for trial in study.failed()] == ["nan"]  # the last trial of that run is open


@pytest.mark.parametrize(("direction", "best"), [("minimize", 0.25), ("maximize", 2.0)])
def test_the_best_trial_is_the_best(tmp_path, direction, best):
    study = search(tmp_path, replace(SETTINGS, direction=direction))
    assert study.best() is None
    with_values(study, tmp_path, [1.0, 0.25, 2.0])
    assert study.best().value == best


def test_a_metric_that_was_not_measured_is_a_sentence(tmp_path):
    folder = ended(tmp_path, "run", 0.25)
    assert measured(folder, "val_loss") == 0.25  # the last one, not the last cell
    with pytest.raises(RunError, match=r"metric=fd was not measured: .* has train_loss, val_loss; take one"):
        measured(folder, "fd")


def test_importances_name_the_parameter_that_matters(tmp_path):
    study = search(tmp_path, replace(SETTINGS, sampler="random"))
    assert study.importances() == {}
    for i in range(30):
        trial = study.assign(study.ask(), f"{i:08}", [])
        ended(tmp_path, f"{i:08}", trial.params["n"] + 1e-3 * trial.params["lr"])
        study.settle(trial)
    shares = study.importances()
    assert set(shares) == set(SPACE)
    assert sum(shares.values()) == pytest.approx(1)
    assert max(shares, key=shares.get) == "n"


def complete_with_curve(study, path, run, curve):
    trial = study.assign(study.ask(), run, [])
    seen = OpenTrial.of(path, run)
    for step, value in curve.items():
        seen.is_hopeless(step, value)
    ended(path, run, list(curve.values())[-1])
    study.settle(trial)


def test_a_run_finds_its_trial_and_is_told_when_it_is_hopeless(tmp_path):
    assert OpenTrial.of(tmp_path, "00000001") is None  # no study at all
    study = search(tmp_path)
    complete_with_curve(study, tmp_path, "00000000", {10: 1.0, 20: 0.5})
    assert OpenTrial.of(tmp_path, "00000000") is None  # it has ended
    study.assign(study.ask(), "00000001", [])
    study.assign(study.ask(), "00000002", [])
    assert OpenTrial.of(tmp_path, "00000003") is None
    good, bad = OpenTrial.of(tmp_path, "00000001"), OpenTrial.of(tmp_path, "00000002")
    assert (good.metric, good.study) == ("val_loss", study.name)
    assert not good.is_hopeless(10, 0.9)
    assert bad.is_hopeless(10, 1.1)
    resumed = OpenTrial.of(tmp_path, "00000002")
    assert resumed.is_hopeless(10, 1.1)  # warns if it reported twice, and warnings are errors
    assert study.trials()[2].intermediate_values == {10: 1.1}


@pytest.mark.parametrize(
    "settings", [{"pruner": "none"}, {"startup_trials": 2}, {"warmup_steps": 11}, {"direction": "maximize"}]
)
def test_nothing_is_hopeless_for(tmp_path, settings):
    study = search(tmp_path, replace(SETTINGS, **settings))
    complete_with_curve(study, tmp_path, "00000000", {10: 1.0, 20: 0.5})
    study.assign(study.ask(), "00000001", [])
    assert not OpenTrial.of(tmp_path, "00000001").is_hopeless(10, 1.1)


def test_the_file_lies_beside_the_runs_and_is_no_run(tmp_path):
    search(tmp_path).ask()
    assert [path.name for path in tmp_path.iterdir()] == ["study.journal"]
    assert all(json.loads(line) for line in (tmp_path / "study.journal").read_text().splitlines())
