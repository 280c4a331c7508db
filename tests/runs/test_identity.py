"""Run ids: what changes the numbers changes the id, and nothing else does."""

import re

import pytest

from flowdiff import config
from flowdiff.runs import identity
from flowdiff.runs.run_folder import RunFolder


def run_id(*overrides):
    return identity.run_id(config.resolved(config.compose(overrides)))


# Paths, logging and hardware do not change the id; the last two are the defaults.
SAME = ["logger=csv", "accelerator=cpu", "tags=[a]", "dataset.num_workers=2", "metrics.cache_dir=/x", "force=true"]
SAME += ["flow=realnvp seed=0"]
OTHER = ["seed=1", "flow.n_flows=5", "activation=elu", "dataset.batch_size=64", "trainer.max_steps=7"]
OTHER += ["accelerator.precision=bf16-mixed"]


@pytest.mark.parametrize("overrides", [*SAME, *OTHER])
def test_only_what_changes_the_numbers_changes_the_id(overrides):
    assert (run_id(*overrides.split()) == run_id()) is (overrides in SAME)


def test_a_run_that_uses_another_run_has_the_same_id_wherever_that_is(tmp_path):
    def using(name, *overrides):
        folder = RunFolder(tmp_path / name)
        folder.write_config(config.resolved(config.compose(["experiment=vae_digits", *overrides])))
        return run_id("first_stage=vae", f"first_stage.run={folder.path}")

    assert using("here") == using("there") != using("other", "seed=1")
    no_run = run_id("first_stage=vae", f"first_stage.run={tmp_path}")  # no run folder: the path counts
    assert no_run != using("here")


def test_folder_names_are_short_and_safe():
    folder = identity.run_folder("dataset.path=/a b/c:d,e " + "x" * 300, "12345678")
    assert re.fullmatch(r"[A-Za-z0-9._-]{,91}-12345678", folder)
    assert identity.run_folder("flow.n_flows=5 activation=elu", "12345678") == "flow.n_flows-5__activation-elu-12345678"


@pytest.mark.parametrize(
    ("overrides", "sweep", "name"),
    [
        ("flow.n_flows=5 activation=elu logger=csv plugins=[/a/b.py]", None, "flow.n_flows=5 activation=elu"),
        ("", None, "default"),
        ("experiment=losses seed=1", None, "experiment=losses seed=1"),
        ("experiment=losses seed=1", "losses", "seed=1"),
    ],
)
def test_run_names(overrides, sweep, name):
    assert identity.run_name(overrides.split(), sweep) == name


def test_sweep_name_is_the_same_for_the_sweep_and_its_jobs():
    of_sweep = identity.sweep_name(["flow.n_flows=1,2", "seed=1,2"], None)
    assert of_sweep == identity.sweep_name(["flow.n_flows=1", "seed=2"], None)
    assert identity.sweep_name(["flow.n_flows=1"], "n_flows") == "n_flows"
