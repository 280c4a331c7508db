"""Renamed settings: old configs are read in today's names, and run ids are hashed with the first names."""

import copy

import pytest
import yaml

from flowdiff import config
from flowdiff.runs import identity
from flowdiff.runs.collect import read_run
from flowdiff.runs.machine_settings import get_value
from flowdiff.runs.renamed_settings import RENAMED, in_current_names, in_first_names
from flowdiff.runs.run_folder import RunFolder

SAME = {"name": "default", "outliers": False, "interpolate": True}
OLD_ODE = {"ode": True, "ode_rtol": 1e-5, "ode_atol": 1e-5, "ode_probes": None}
FIRST = {"seed": 0, "metrics": {**SAME, **OLD_ODE, "sigma_eval": None, "classify": None}}
ODE = {"measure": True, "rtol": 1e-5, "atol": 1e-5, "probes": None}
NOW = {"seed": 0, "metrics": {**SAME, "ode": ODE, "sigma_eval": "auto", "classify": "auto"}}
FIRST_DEFAULT = ["flow=linear_activation", "trainer.max_steps=2000"]
# The metrics settings of the default run that are hashed. Adding, renaming or removing one changes the id of every run,
# unless flowdiff/runs/renamed_settings.py contains it.
HASHED_METRICS = {
    *("name", "every_n_steps", "periodic_num_samples", "num_samples", "repeats", "sigmas_per_sample", "sigma_eval"),
    *("sigma_sweep", "batch_size", "cache_dir", "frechet", "compare", "inception_weights", "likelihood"),
    *("ode", "ode_rtol", "ode_atol", "ode_probes", "classify", "outliers", "interpolate"),
}


def test_old_and_new_names_are_translated_into_each_other():
    before = copy.deepcopy((FIRST, NOW))
    assert in_current_names(FIRST) == in_current_names(NOW) == NOW
    assert in_first_names(NOW) == in_first_names(FIRST) == FIRST
    assert before == (FIRST, NOW)  # the arguments are not changed


@pytest.mark.parametrize("given", [{}, {"metrics": None}, {"metrics": {"name": "default"}}, {"metrics": {"ode": {}}}])
def test_configs_without_these_settings_stay(given):
    assert in_current_names(given) == in_first_names(given) == given


def test_a_run_keeps_its_id():
    """Whatever the defaults are now: the default run of the first version, which names them."""
    settings = config.resolved(config.compose(FIRST_DEFAULT))
    assert identity.run_id(settings) == "10d256c2"
    assert set(in_first_names(settings)["metrics"]) == HASHED_METRICS
    assert identity.run_id(in_first_names(settings)) == "10d256c2"


@pytest.mark.parametrize("renamed", RENAMED, ids=lambda renamed: renamed.now)
def test_todays_names_are_settings(renamed):
    group, *keys = renamed.now.split(".")
    nodes = [config.defaults(group, option) for option in config.options(group)]
    for key in keys:
        nodes = [node[key] for node in nodes if isinstance(node, dict) and key in node]
    assert nodes


@pytest.mark.parametrize("key", ["clip", "network.gate"])
def test_an_old_run_is_what_it_was_without_a_warning(tmp_path, caplog, key):
    today = config.resolved(config.compose([]))
    as_before = config.resolved(config.compose([f"{key}=false"]))
    assert get_value(today, key) is not False
    old = copy.deepcopy(as_before)
    group, _, name = key.rpartition(".")
    del (old[group] if group else old)[name]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(old))
    found = config.of_run(RunFolder(tmp_path))
    assert get_value(found, key) is False
    assert caplog.text == ""
    assert identity.run_id(found) == identity.run_id(as_before) == identity.run_id(old) != identity.run_id(today)


def test_an_old_isotropic_whitening_keeps_the_mean(tmp_path, caplog):
    settings = config.resolved(config.compose(["flow=realnvp", "whitening.center=false"]))
    old = copy.deepcopy(settings)
    del old["whitening"]["center"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(old))
    assert config.of_run(RunFolder(tmp_path))["whitening"] == {"name": "isotropic", "center": False}
    assert caplog.text == ""
    assert identity.run_id(settings) == identity.run_id(old)
    assert identity.run_id(config.resolved(config.compose(["flow=realnvp"]))) != identity.run_id(old)


def test_the_folder_of_an_old_run_loads(tmp_path):
    settings = config.resolved(config.compose(FIRST_DEFAULT))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(in_first_names(settings)))
    folder = RunFolder(tmp_path)
    assert config.of_run(folder) == settings  # folder.config() lacks the settings that were added later
    assert identity.run_id(folder.config()) == "10d256c2"
    found = read_run(tmp_path, "old").config
    assert found["metrics.ode.measure"] == "false"
    assert found["metrics.classify"] == "auto"


def test_an_old_run_by_likelihood_had_no_weighting(tmp_path):
    settings = config.resolved(config.compose(["loss=nll"]))
    first = in_first_names(settings)
    assert "weighting" not in first
    assert first["loss"] == {"name": "nll"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(first))
    folder = RunFolder(tmp_path)
    assert folder.config()["weighting"] == {"name": "unit"}
    assert config.of_run(folder) == settings
    assert identity.run_id(folder.config()) == identity.run_id(first) == identity.run_id(settings)


@pytest.mark.parametrize(
    "change",
    [
        ["loss=nll", "weighting=sigma"],
        ["loss=nll", "loss.fokker_planck=0.1"],
        ["loss=nll", "conditioner.null_condition=mean"],
        ["loss=nll", "optimizer.final_lr=1e-5"],
        ["weighting=unit"],  # of loss=denoising, which always had a weighting
    ],
    ids=" ".join,
)
def test_what_is_not_as_before_has_another_id(change):
    before = ["loss=nll"] if "loss=nll" in change else []
    one, other = (identity.run_id(config.resolved(config.compose(given))) for given in (before, change))
    assert one != other
    assert identity.run_id(in_first_names(config.resolved(config.compose(change)))) == other
