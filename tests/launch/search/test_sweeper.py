"""`python train.py -m hydra/sweeper=optuna`: the search space, and a search from the command line to its folder."""

import re
import shlex

import optuna
import pytest
from cli_process import check_interrupted_sweep, outcomes, succeed
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from runs import ANY_STEPS

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
    assert parsed("a.b=3", f"a.b={words}", "c=1,2", "c=1") == {
        "a.b": distribution,
        "c": "c=1",
    }  # the later override counts


@pytest.mark.parametrize(
    "words",
    [
        *("interval(1,0)", "range(5,1)", "range(5,1,-1)", "tag(log,interval(0,1))", "tag(log,choice(1,2))"),
        *("tag(exp,interval(0,1))", "tag(log,range(0.1,0.9,step=0.2))"),
    ],
)
def test_what_is_not_a_space_is_a_sentence(words):
    with pytest.raises(ConfigurationError, match=rf"^a={re.escape(words)} cannot be searched over \(.*\): give choice"):
        parsed(f"a={words}")


OPTUNA = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.seed=1"]
FIXED = [*ANY_STEPS, "trainer.max_steps=6", "metrics.every_n_steps=2"]
LR = "optimizer.lr=tag(log,interval(1e-4,1e-2))"


def search(name, n_trials, *more, space=(LR, "flow.n_flows=range(1,3)")):
    return [*OPTUNA, *FIXED, *space, f"hydra.sweep.dir=multirun/{name}", f"hydra.sweeper.n_trials={n_trials}", *more]


def studies(folder):
    """The studies in a sweep folder."""
    backend = optuna.storages.journal.JournalFileBackend(str((folder / "study.journal").absolute()))
    storage = optuna.storages.JournalStorage(backend)
    return [optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)]


def run_folders(folder):
    return {path.name.rpartition("-")[2]: RunFolder(path) for path in folder.glob("*/")}


BAD = {  # more of the command, and the message
    "senseless": (
        search("none", 2, "optimizer.learning_rate=range(1,9)"),
        r"2 trials in a row are invalid; the last one: .*learning_rate is not a setting of optimizer",
    ),
    "metric": (
        search("s", 2, "hydra.sweeper.metric=fid"),
        r"hydra.sweeper.metric=fid was not measured: .* has .*val_loss.*; choose one of these",
    ),
    "settings": (search("none", 0), r"hydra.sweeper.n_trials=0 is not allowed: input should be greater than 0"),
    "space": (search("none", 2, space=[]), r"hydra/sweeper=optuna has nothing to search: give at least one choice"),
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Several searches, one after the other: (exit status, stderr) of each, and their folder."""
    cwd = tmp_path_factory.mktemp("searches")
    random = ["hydra.sweeper.sampler=random", "hydra.sweeper.pruner=none"]
    commands = {
        "first": search("s", 2, "hydra.sweeper.n_jobs=2"),
        "again": search("s", 2, "hydra.sweeper.n_jobs=1"),
        "partly_senseless": search("partly", 6, *random, space=["scaling=edm,score"]),
        **{name: command for name, (command, _) in BAD.items()},
    }
    return dict(zip(commands, outcomes("train", list(commands.values()), cwd), strict=True)), cwd / "multirun"


def test_a_search_leaves_its_trials_their_runs_and_a_picture_and_repeats_none(ran):
    results, multirun = ran
    assert results["first"] == results["again"] == (0, "")
    study, _ = studies(multirun / "s")
    folders = run_folders(multirun / "s")
    assert len(study.trials) == len(folders) == 2  # the first trials of the search for another metric are the same runs
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


def test_trials_that_make_no_sense_are_refused_and_the_others_run_once(ran):
    results, multirun = ran
    assert results["partly_senseless"] == (0, "")
    (study,) = studies(multirun / "partly")
    states = {(trial.params["scaling"], trial.state.name) for trial in study.trials}
    assert states == {("edm", "FAIL"), ("score", "COMPLETE")}  # with this seed, both occur among the six trials
    refused = [trial.user_attrs["refused"] for trial in study.trials if trial.state.name == "FAIL"]
    assert all("scaling=edm" in sentence for sentence in refused)
    assert len(run_folders(multirun / "partly")) == 1  # the same parameters again are the same run


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_a_sentence(ran, name):
    results, multirun = ran
    status, stderr = results[name]
    assert status == 2
    assert re.search(BAD[name][1], stderr)
    assert "Traceback" not in stderr
    assert not (multirun / "none").exists()


@pytest.mark.slow
def test_hopeless_trials_end_early_and_the_best_is_printed_as_a_command(ran):
    sweep = ran[1] / "s"
    study, _ = studies(sweep)
    for _ in range(3):  # no trial can reach the median of these
        unbeaten = study.ask(study.trials[0].distributions)
        unbeaten.set_user_attr("overrides", [*FIXED, "flow.n_flows=1"])
        for step in (2, 4):
            unbeaten.report(-1e9, step)
        study.tell(unbeaten, -1e9)
    done = succeed("train", *search("s", 7, "hydra.sweeper.startup_trials=5"), cwd=sweep.parents[1])
    assert "2 runs: 2 pruned" in done.stdout
    assert [trial.state.name for trial in study.trials] == [*["COMPLETE"] * 5, *["PRUNED"] * 2]
    assert shlex.join(["python", "train.py", *FIXED, "flow.n_flows=1"]) in done.stdout
    pruned = [run_folders(sweep)[trial.user_attrs["run"]] for trial in study.trials[5:]]
    assert [(folder.pruned()["step"], folder.is_complete) for folder in pruned] == [(2, False)] * 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_search_that_is_killed_ends_like_an_undisturbed_one(tmp_path):
    sizes = ["trainer.max_steps=80", "metrics.every_n_steps=40", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=2"]
    command = [*OPTUNA, *ANY_STEPS, *sizes, LR, "hydra.sweeper.pruner=none"]
    found = []
    for folder in check_interrupted_sweep(command, 1, tmp_path):
        trials = studies(folder)[0].trials
        found.append([(t.number, t.state.name, t.params, t.value, t.user_attrs["run"]) for t in trials])
        assert len(trials) == len(run_folders(folder)) == 3
    assert found[0] == found[1]
