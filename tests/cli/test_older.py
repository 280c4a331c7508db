"""Run folders of other versions: they work where that can be, and otherwise a sentence says what is in the way."""

import json
import shutil

import pytest
import torch
import yaml
from cli_process import outcomes
from runs import TINY, train

from flowdiff.runs.collect import collect

ANEW = "Train the run again, or use the version of flowdiff that made it."


def without(*keys):
    """Remove keys, each a path into a nested mapping."""

    def change(tree):
        for key in keys:
            *path, last = key.split(".")
            node = tree
            for name in path:
                node = node[name]
            del node[last]

    return change


def unknown(config):
    config["flow"]["old_key"] = 3


def renamed(config):
    config["flow"]["name"] = "an_old_flow"


# What an older version may have left: name of the folder -> (its config, its result, its checkpoint); None as it is.
OLDER = {
    "groups": (without("guidance", "first_stage", "logger"), None, None),
    "keys": (without("metrics.periodic_num_samples", "trainer.benchmark", "plugins", "tags"), None, None),
    "nameless": (without("network.name"), None, None),
    "unknown": (unknown, None, None),
    "renamed": (renamed, None, None),
    "result": (None, without("metrics.fd_data_floor", "metrics.num_test", "seconds", "name", "device"), None),
    "metrics": (None, without("metrics", "steps", "parameters"), None),
    "weights": (None, None, lambda checkpoint: checkpoint["state_dict"].popitem()),
    "optimizer": (None, None, without("optimizer_states", "callbacks")),
}


HALVES = [f"{name}_half" for name in OLDER if name != "result"]  # without its result, that one is metrics_half


@pytest.fixture(scope="module")
def older(tmp_path_factory):
    root = tmp_path_factory.mktemp("older")
    train(root / "today", *TINY)
    for name, (config, result, checkpoint) in OLDER.items():
        for folder in (root / name, root / f"{name}_half"):
            shutil.copytree(root / "today", folder)
            _change(folder / "config.yaml", config, yaml.safe_load, lambda tree, path: path.write_text(yaml.dump(tree)))
            _change(folder / "result.json", result, json.loads, lambda tree, path: path.write_text(json.dumps(tree)))
            if checkpoint is not None:
                file = folder / "checkpoints" / "last.ckpt"
                tree = torch.load(file, weights_only=True)
                checkpoint(tree)
                torch.save(tree, file)
        (root / f"{name}_half" / "result.json").unlink()
    for name, text in (("cut", '{"run_id": '), ("empty", "")):
        shutil.copytree(root / "today", root / name)
        (root / name / "result.json").write_text(text)
    shutil.copytree(root / "today", root / "unreadable")
    (root / "unreadable" / "config.yaml").write_text("seed: [")
    return root


def _change(path, change, read, write):
    if change is not None:
        tree = read(path.read_text())
        change(tree)
        write(tree, path)


@pytest.fixture(scope="module")
def resumed(older):
    names = [*OLDER, *HALVES, "cut", "empty", "unreadable"]
    before = sorted(path.relative_to(older) for path in older.rglob("last.ckpt"))
    found = outcomes("train", [[f"resume={name}"] for name in names], older)
    assert sorted(path.relative_to(older) for path in older.rglob("last.ckpt")) == before  # nothing is lost
    return dict(zip(names, found, strict=True))


@pytest.fixture(scope="module")
def sampled(older):
    found = outcomes("sample", [[f"run={name}", "num_samples=4"] for name in OLDER], older)
    return dict(zip(OLDER, found, strict=True))


@pytest.mark.parametrize("name", OLDER)
def test_a_complete_run_is_complete_whatever_made_it(resumed, name):
    status, said = resumed[name]
    assert status == 0
    assert f"{name} is complete; force=true trains it from scratch." in said


WORKING = ("groups", "keys", "result", "metrics")
REFUSED = {
    "nameless": ("does not fit this version of flowdiff: network has no name", ANEW),
    "unknown": ("does not fit this version of flowdiff: flow.old_key is not a setting of flow=", ANEW),
    "renamed": ("does not fit this version of flowdiff: flow=an_old_flow is unknown", ANEW),
    "weights": ("does not fit the run's configuration in this version", "start anew with force=true"),
    "optimizer": ("(it has no callbacks, optimizer_states)", "start anew with force=true"),
}


@pytest.mark.parametrize("name", ["groups_half", "keys_half", "metrics_half", "cut", "empty"])
def test_what_is_missing_is_as_by_default_and_the_run_goes_on(older, resumed, name):
    status, said = resumed[name]
    assert status == 0
    assert ("was made by an older version: " in said) == (name in ("groups_half", "keys_half"))
    result = json.loads((older / name / "result.json").read_text())
    assert result["steps"] == 8
    assert result["metrics"]["test_loss"] > 0


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_one_sentence(resumed, name):
    status, stderr = resumed[f"{name}_half"]
    assert status == 2
    assert all(words in stderr for words in REFUSED[name])
    assert len(stderr.splitlines()) == 1


def test_a_config_that_cannot_be_read_is_one_sentence(resumed):
    status, stderr = resumed["unreadable"]
    assert status == 2
    assert stderr.startswith("unreadable/config.yaml cannot be read (")
    assert len(stderr.splitlines()) == 1


@pytest.mark.parametrize("name", OLDER)
def test_an_older_run_is_sampled_or_refused_in_one_sentence(sampled, name):
    status, stderr = sampled[name]
    if name in (*WORKING, "optimizer"):
        assert status == 0
        assert "4 samples in" in stderr
    elif name == "weights":
        assert (status, len(stderr.splitlines())) == (2, 1)
        assert "is not a checkpoint of this run's configuration" in stderr
    else:
        assert (status, len(stderr.splitlines())) == (2, 1)
        assert all(words in stderr for words in REFUSED[name])


def test_a_report_takes_them_all(older):
    found = {run.folder.name: run for run in collect([older])}
    assert found["metrics"].state == "complete"
    assert found["unreadable"].state == "unreadable"
    assert {"metrics", "steps", "parameters"} <= set(found["metrics"].missing)
