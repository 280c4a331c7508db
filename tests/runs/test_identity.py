"""Run ids: what changes the numbers changes the id, and nothing else does."""

import re

import pytest

from flowdiff import config
from flowdiff.runs import identity
from flowdiff.runs.run_folder import RunFolder


def run_id(*overrides):
    return identity.run_id(config.resolved(config.compose(overrides)))


@pytest.mark.parametrize(
    ("overrides", "same"),
    [
        (["logger=csv"], True),
        (["accelerator=cpu"], True),
        (["tags=[a]"], True),
        (["dataset.num_workers=2"], True),
        (["metrics.cache_dir=/x"], True),
        (["force=true"], True),
        (["flow=linear_activation", "seed=0"], True),  # these are the defaults
        (["seed=1"], False),
        (["flow.n_flows=5"], False),
        (["activation=elu"], False),
        (["accelerator.precision=bf16-mixed"], False),
        (["dataset.batch_size=64"], False),
        (["trainer.max_steps=7"], False),
    ],
)
def test_paths_logging_and_hardware_do_not_change_the_id(overrides, same):
    assert (run_id(*overrides) == run_id()) is same


def test_a_run_that_uses_another_run_has_the_same_id_wherever_that_is(tmp_path):
    def using(name, *overrides):
        folder = RunFolder(tmp_path / name)
        folder.write_config(config.resolved(config.compose(["experiment=vae_digits", *overrides])))
        return run_id("first_stage=vae", f"first_stage.run={folder.path}")

    assert using("here") == using("there") != using("other", "seed=1")
    assert run_id("first_stage=vae", f"first_stage.run={tmp_path}") != using(
        "here"
    )  # not a run folder: the path counts


def test_folder_names_are_short_and_safe():
    folder = identity.run_folder("dataset.path=/a b/c:d,e " + "x" * 300, "12345678")
    assert re.fullmatch(r"[A-Za-z0-9._-]{,91}-12345678", folder)
    assert identity.run_folder("flow.n_flows=5 activation=elu", "12345678") == "flow.n_flows-5__activation-elu-12345678"


@pytest.mark.parametrize(
    ("overrides", "sweep", "name"),
    [
        (
            ["flow.n_flows=5", "activation=elu", "logger=csv", "plugins=[/a/b.py]"],
            None,
            "flow.n_flows=5 activation=elu",
        ),
        ([], None, "default"),
        (["experiment=losses", "seed=1"], None, "experiment=losses seed=1"),
        (["experiment=losses", "seed=1"], "losses", "seed=1"),
    ],
)
def test_run_names(overrides, sweep, name):
    assert identity.run_name(overrides, sweep) == name


def test_sweep_name_is_the_same_for_the_sweep_and_its_jobs():
    names = [
        identity.sweep_name(given, None) for given in (["flow.n_flows=1,2", "seed=1,2"], ["flow.n_flows=1", "seed=2"])
    ]
    assert names[0] == names[1]
    assert identity.sweep_name(["flow.n_flows=1"], "n_flows") == "n_flows"
