"""Run identity: what changes the numbers changes the hash, what does not leaves it."""

import pytest

from flowdiff import config
from flowdiff.runs import identity
from flowdiff.runs.run_folder import RunFolder


def run_id(*overrides):
    return identity.run_id(config.resolved(config.compose(overrides)))


@pytest.mark.parametrize(
    "override",
    ["logger=csv", "accelerator=cpu", "tags=[a]", "dataset.num_workers=2", "metrics.cache_dir=/x", "force=true"],
)
def test_paths_logging_and_hardware_are_not_identity(override):
    assert run_id(override) == run_id()


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "flow.n_flows=5",
        "activation=elu",
        "accelerator.precision=bf16-mixed",
        "dataset.batch_size=64",
        "trainer.max_steps=7",
    ],
)
def test_what_decides_the_numbers_is_identity(override):
    assert run_id(override) != run_id()


def test_a_run_that_stands_on_another_is_the_same_wherever_that_lies(tmp_path):
    def behind(name, *overrides):
        folder = RunFolder(tmp_path / name)
        folder.write_config(config.resolved(config.compose(["experiment=vae_digits", *overrides])))
        return run_id("first_stage=vae", f"first_stage.run={folder.path}")

    assert behind("here") == behind("there") != behind("other", "seed=1")
    assert run_id("first_stage=vae", f"first_stage.run={tmp_path}") != behind("here")  # no run folder: the path counts


def test_a_default_said_aloud_is_the_same_run():
    assert run_id("flow=linear_activation", "seed=0") == run_id()


def test_folder_names_are_short_and_safe():
    name = identity.run_name(["flow.n_flows=5", "activation=elu", "logger=csv", "plugins=[/a/b.py]"])
    assert name == "flow.n_flows=5 activation=elu"
    folder = identity.run_folder("dataset.path=/a b/c:d,e " + "x" * 300, "12345678")
    assert len(folder) < 100
    assert set(folder) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
    assert identity.run_folder(name, "12345678") == "flow.n_flows-5__activation-elu-12345678"
    assert folder.endswith("-12345678")
    assert identity.run_name([]) == "default"
    assert identity.run_name(["experiment=losses", "seed=1"]) == "experiment=losses seed=1"
    assert identity.run_name(["experiment=losses", "seed=1"], sweep="losses") == "seed=1"


def test_sweep_name_is_the_same_for_the_sweep_and_its_jobs():
    assert identity.sweep_name(["flow.n_flows=1,2", "seed=1,2"], None) == identity.sweep_name(
        ["flow.n_flows=1", "seed=2"], None
    )
    assert identity.sweep_name(["flow.n_flows=1"], "n_flows") == "n_flows"
