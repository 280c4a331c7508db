"""Run folders of other versions: they work where that can be, and otherwise a sentence says what is in the way."""

import json
import shutil
from functools import partial

import pytest
import torch
import yaml
from cli_process import outcomes
from runs import TINY, train

import flowdiff
from flowdiff.runs.collect import collect

AGAIN = "Train the run again, or use the version of flowdiff that made it."
FROM_SCRATCH = "start from scratch with force=true"


def without(*keys):
    """Remove keys, each a path into a nested mapping."""

    def change(tree):
        for key in keys:
            node, (*path, last) = tree, key.split(".")
            for name in path:
                node = node[name]
            del node[last]

    return change


CONFIG, RESULT, CHECKPOINT = "config.yaml", "result.json", "checkpoints/last.ckpt"
# What an older version may have left: name of the folder -> (the file that differs, how).
OLDER = {
    "groups": (CONFIG, without("guidance", "first_stage", "logger")),
    "keys": (CONFIG, without("metrics.periodic_num_samples", "trainer.benchmark", "plugins", "tags")),
    "nameless": (CONFIG, without("network.name")),
    "unknown": (CONFIG, lambda config: config["flow"].update(old_key=3)),
    "renamed": (CONFIG, lambda config: config["flow"].update(name="an_old_flow")),
    "result": (RESULT, without("metrics.fd_data_floor", "metrics.num_test", "seconds", "name", "device")),
    "metrics": (RESULT, without("metrics", "steps", "parameters")),
    "weights": (CHECKPOINT, lambda checkpoint: checkpoint["state_dict"].popitem()),
    "optimizer": (CHECKPOINT, without("optimizer_states", "callbacks")),
}
HALVES = [f"{name}_half" for name in OLDER if name != "result"]  # without its result, that one is metrics_half
DAMAGED = {  # name of the folder -> (the file that differs, its text)
    "cut": (RESULT, '{"run_id": '),
    "empty": (RESULT, ""),
    "unreadable": (CONFIG, "seed: ["),
}


@pytest.fixture(scope="module")
def older(tmp_path_factory):
    root = tmp_path_factory.mktemp("older")
    train(root / "today", *TINY)
    for name, (file, change) in OLDER.items():
        shutil.copytree(root / "today", root / name)
        rewrite(root / name / file, change)
        shutil.copytree(root / name, root / f"{name}_half")
        (root / f"{name}_half" / RESULT).unlink()
    for name, (file, text) in DAMAGED.items():
        shutil.copytree(root / "today", root / name)
        (root / name / file).write_text(text)
    return root


FORMATS = {  # how a file is read and written
    ".yaml": (lambda path: yaml.safe_load(path.read_text()), lambda tree, path: path.write_text(yaml.dump(tree))),
    ".json": (lambda path: json.loads(path.read_text()), lambda tree, path: path.write_text(json.dumps(tree))),
    ".ckpt": (partial(torch.load, weights_only=True), torch.save),
}


def rewrite(path, change):
    """Change the content of a file."""
    read, write = FORMATS[path.suffix]
    change(tree := read(path))
    write(tree, path)


@pytest.fixture(scope="module")
def resumed(older):
    names = [*OLDER, *HALVES, *DAMAGED]
    before = sorted(path.relative_to(older) for path in older.rglob("last.ckpt"))
    found = outcomes("train", [[f"resume={name}"] for name in names], older)
    assert sorted(path.relative_to(older) for path in older.rglob("last.ckpt")) == before  # nothing is lost
    return dict(zip(names, found, strict=True))


@pytest.mark.parametrize("name", OLDER)
def test_a_complete_run_is_complete_whatever_made_it(resumed, name):
    status, said = resumed[name]
    assert status == 0
    assert f"{name} is complete; force=true trains it from scratch." in said


WORKING = ("groups", "keys", "result", "metrics", "optimizer")  # of these a sample can be drawn
REFUSED = {
    "nameless": ("does not fit this version of flowdiff: network has no name", AGAIN),
    "unknown": ("does not fit this version of flowdiff: flow.old_key is not a setting of flow=", AGAIN),
    "renamed": ("does not fit this version of flowdiff: flow=an_old_flow is unknown", AGAIN),
    "weights": ("does not fit the run's configuration in this version", FROM_SCRATCH),
    "optimizer": ("(it has no callbacks, optimizer_states)", FROM_SCRATCH),
}


@pytest.mark.parametrize("name", ["groups_half", "keys_half", "metrics_half", "cut", "empty"])
def test_what_is_missing_is_as_by_default_and_the_run_goes_on(older, resumed, name):
    status, said = resumed[name]
    assert status == 0
    assert ("was made by an older version: " in said) == (name in ("groups_half", "keys_half"))
    result = json.loads((older / name / "result.json").read_text())
    assert result["steps"] == 8
    assert result["metrics"]["test_loss"] > 0


def test_what_does_not_fit_is_one_sentence(resumed):
    assert resumed["unreadable"][1].startswith("unreadable/config.yaml cannot be read (")
    for name, words in {**REFUSED, "unreadable": ()}.items():
        status, stderr = resumed[f"{name}_half" if name in REFUSED else name]
        assert (status, len(stderr.splitlines())) == (2, 1)
        assert all(part in stderr for part in words)


def test_an_older_run_is_sampled_or_refused_in_one_sentence(older):
    found = outcomes("sample", [[f"run={name}", "num_samples=4"] for name in OLDER], older)
    sentences = {name: (first, f"or use flowdiff {flowdiff.__version__}") for name, (first, _) in REFUSED.items()}
    sentences["weights"] = ("is not a checkpoint of this run's configuration",)
    for name, (status, stderr) in zip(OLDER, found, strict=True):
        if name in WORKING:
            assert status == 0
            assert "4 samples in" in stderr
        else:
            assert (status, len(stderr.splitlines())) == (2, 1)
            assert all(words in stderr for words in sentences[name])


def test_a_report_takes_them_all(older):
    found = {run.folder.name: run for run in collect([older])}
    assert found["metrics"].state == "complete"
    assert found["unreadable"].state == "unreadable"
    assert {"metrics", "steps", "parameters"} <= set(found["metrics"].missing)
