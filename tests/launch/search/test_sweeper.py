"""`python train.py -m hydra/sweeper=optuna`: the space one types, and a search from the command line to its folder."""

import re
import shlex

import optuna
import pytest
from cli_process import killed, outcomes, script
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from runs import TINY

from flowdiff.errors import ConfigurationError
from flowdiff.launch.search.sweeper import search_space
from flowdiff.runs.run_folder import RunFolder


def parsed(*overrides):
    return search_space(OverridesParser.create().parse_overrides(list(overrides)))


@pytest.mark.parametrize(
    ("words", "distribution"),
    [
        ("choice(softplus,elu)", CategoricalDistribution(("softplus", "elu"))),
        ("softplus,elu,elu", CategoricalDistribution(("softplus", "elu"))),
        ("1,2.5,null,'a b'", CategoricalDistribution(("1", "2.5", "null", "'a b'"))),
        ("[1,2],[3]", CategoricalDistribution(("[1,2]", "[3]"))),
        ("range(1,10)", IntDistribution(1, 10)),
        ("range(1,10,4)", IntDistribution(1, 9, step=4)),
        ("range(4)", IntDistribution(0, 4)),
        ("range(0.5,2.0,step=0.25)", FloatDistribution(0.5, 2.0, step=0.25)),
        ("range(0,1,step=0.3)", FloatDistribution(0, 0.9, step=0.3)),
        ("tag(log,range(1,64))", IntDistribution(1, 64, log=True)),
        ("interval(0,1)", FloatDistribution(0, 1)),
        ("int(interval(1,64))", IntDistribution(1, 64)),
        ("tag(log,interval(1e-4,3e-3))", FloatDistribution(1e-4, 3e-3, log=True)),
        ("tag(log,int(interval(1,64)))", IntDistribution(1, 64, log=True)),
    ],
)
def test_hydras_grammar_is_a_space(words, distribution):
    assert parsed(f"a.b={words}", "c=1") == {"a.b": distribution, "c": "c=1"}


@pytest.mark.parametrize(
    "words",
    [
        *("interval(1,0)", "range(5,1)", "range(5,1,-1)", "tag(log,interval(0,1))", "tag(log,choice(1,2))"),
        *("tag(exp,interval(0,1))", "tag(log,range(0.1,0.9,step=0.2))"),
    ],
)
def test_what_is_no_space_is_a_sentence(words):
    with pytest.raises(ConfigurationError, match=rf"^a={re.escape(words)} cannot be searched over \(.*\): give choice"):
        parsed(f"a={words}")


def test_the_later_word_on_a_key_counts():
    assert parsed("a=1,2", "b=1,2", "a=3") == {"a": "a=3", "b": CategoricalDistribution(("1", "2"))}


def test_nothing_to_search_is_a_sentence():
    with pytest.raises(ConfigurationError, match=r"nothing to search: give at least one choice"):
        parsed("a=1")


FIXED = [
    *(o for o in TINY if "max_steps" not in o and "every_n" not in o),
    "trainer.max_steps=6",
    "metrics.every_n_steps=2",
]
OPTUNA = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.seed=1"]
SEARCH = [*OPTUNA, *FIXED, "optimizer.lr=tag(log,interval(1e-4,1e-2))", "flow.n_flows=range(1,3)"]


def in_folder(name, n_trials, *more):
    return [*SEARCH, f"hydra.sweep.dir=multirun/{name}", f"hydra.sweeper.n_trials={n_trials}", *more]


def studies(folder):
    """The trials of the studies in a sweep folder."""
    backend = optuna.storages.journal.JournalFileBackend(str((folder / "study.journal").absolute()))
    storage = optuna.storages.JournalStorage(backend)
    return [optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)]


def run_folders(folder):
    return {path.name.rpartition("-")[2]: RunFolder(path) for path in folder.glob("*/")}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Several searches after one another; (exit status, stderr) of each, and the folder they ran in."""
    cwd = tmp_path_factory.mktemp("searches")
    commands = {
        "first": in_folder("s", 2, "hydra.sweeper.n_jobs=2"),
        "again": in_folder("s", 2, "hydra.sweeper.n_jobs=1"),
        "partly_senseless": [
            *OPTUNA,
            *FIXED,
            "hydra.sweep.dir=multirun/partly",
            "hydra.sweeper.n_trials=6",
            "hydra.sweeper.sampler=random",
            "hydra.sweeper.pruner=none",
            "scaling=edm,score",
        ],
        "senseless": in_folder("none", 2, "optimizer.learning_rate=range(1,9)"),
        "metric": in_folder("s", 2, "hydra.sweeper.metric=fid"),
        "settings": in_folder("none", 0),
        "space": [*OPTUNA, *FIXED, "hydra.sweep.dir=multirun/none"],
    }
    results = dict(zip(commands, outcomes("train", list(commands.values()), cwd), strict=True))
    return results, cwd / "multirun"


def test_a_search_leaves_its_trials_their_runs_and_a_picture(ran):
    results, multirun = ran
    assert results["first"] == (0, "")
    study, _ = studies(multirun / "s")
    folders = run_folders(multirun / "s")
    assert {trial.user_attrs["run"] for trial in study.trials} == set(folders)
    for trial in study.trials:
        folder = folders[trial.user_attrs["run"]]
        assert folder.config()["flow"]["n_flows"] == trial.params["flow.n_flows"]
        assert folder.config()["optimizer"]["lr"] == pytest.approx(trial.params["optimizer.lr"], rel=1e-5)
        assert folder.result()["steps"] == 6
        rows = folder.metrics.read_text().splitlines()
        column = rows[0].split(",").index("val_loss")
        assert [row.split(",")[column] for row in rows if row.split(",")[column]][-1] == repr(trial.value)
        assert set(trial.intermediate_values) == {2, 4}
    assert (multirun / "s" / "search.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_command_repeats_nothing(ran):
    results, multirun = ran
    assert results["again"] == (0, "")
    assert len(studies(multirun / "s")[0].trials) == 2
    assert (
        len(run_folders(multirun / "s")) == 2
    )  # nor does a search for another metric, whose first trials are the same


def test_trials_that_make_no_sense_are_told_so_and_the_others_run_once(ran):
    results, multirun = ran
    assert results["partly_senseless"] == (0, "")
    (study,) = studies(multirun / "partly")
    states = {(trial.params["scaling"], trial.state.name) for trial in study.trials}
    assert states == {("edm", "FAIL"), ("score", "COMPLETE")}  # of six, by the sampler's seed, some are either
    assert all("do not go together" in t.user_attrs["refused"] for t in study.trials if t.state.name == "FAIL")
    assert len(run_folders(multirun / "partly")) == 1  # score again is the same run again


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("senseless", r"2 trials in a row make no sense; the last one: .*learning_rate is not a setting of optimizer"),
        ("metric", r"hydra.sweeper.metric=fid was not measured: .* has .*val_loss.*; take one of these"),
        ("settings", r"hydra.sweeper.n_trials=0 is not allowed: input should be greater than 0"),
        ("space", r"hydra/sweeper=optuna has nothing to search"),
    ],
)
def test_bad_input_is_a_sentence(ran, name, message):
    results, multirun = ran
    status, stderr = results[name]
    assert status == 2
    assert re.search(message, stderr)
    assert "Traceback" not in stderr
    assert not (multirun / "none").exists()


@pytest.mark.slow
def test_hopeless_trials_are_ended_early_and_the_best_is_a_command_to_copy(ran):
    study, _ = studies(ran[1] / "s")
    for _ in range(3):  # so that the median of the trials is beyond reach
        unbeaten = study.ask(study.trials[0].distributions)
        unbeaten.set_user_attr("overrides", [*FIXED, "flow.n_flows=1"])
        for step in (2, 4):
            unbeaten.report(-1e9, step)
        study.tell(unbeaten, -1e9)
    done = script("train", *in_folder("s", 7, "hydra.sweeper.startup_trials=5"), cwd=ran[1].parent)
    assert done.returncode == 0, done.stderr
    assert "2 runs: 2 pruned" in done.stdout
    assert [trial.state.name for trial in study.trials] == [*["COMPLETE"] * 5, *["PRUNED"] * 2]
    assert shlex.join(["python", "train.py", *FIXED, "flow.n_flows=1"]) in done.stdout
    for trial in study.trials[5:]:
        folder = run_folders(ran[1] / "s")[trial.user_attrs["run"]]
        assert folder.pruned()["step"] == 2
        assert not folder.is_complete


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_search_that_is_killed_ends_as_an_undisturbed_one(tmp_path):
    shared = [*OPTUNA, *(o for o in FIXED if not o.startswith(("trainer.max_steps", "metrics.every_n_steps")))]
    shared += ["trainer.max_steps=80", "metrics.every_n_steps=40", "optimizer.lr=tag(log,interval(1e-4,1e-2))"]
    shared += ["hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=2", "hydra.sweeper.pruner=none"]
    undisturbed, disturbed = tmp_path / "a" / "s", tmp_path / "b" / "s"
    done = script("train", *shared, f"hydra.sweep.dir={undisturbed}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert killed([*shared, f"hydra.sweep.dir={disturbed}"], disturbed, 1, tmp_path)
    done = script("train", *shared, f"hydra.sweep.dir={disturbed}", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    ours, theirs = (
        [(t.number, t.state.name, t.params, t.value, t.user_attrs["run"]) for t in studies(folder)[0].trials]
        for folder in (disturbed, undisturbed)
    )
    assert ours == theirs
    assert len(ours) == 3
    assert len(run_folders(disturbed)) == len(run_folders(undisturbed)) == 3
