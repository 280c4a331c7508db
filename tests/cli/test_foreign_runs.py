"""run= and resume= of a folder that is not a run, or whose config was damaged: a sentence, and nothing is written."""

import pytest
import yaml
from cli_process import check_mistakes
from runs import TINY, settings

from flowdiff import config
from flowdiff.cli.train import _print_tree
from flowdiff.errors import RunError
from flowdiff.loggers.offline import offline_runs
from flowdiff.runs.run_folder import RunFolder

OTHER = "is not a run of flowdiff, its config.yaml is of another program (it has model, lr and no network or dataset)"
FOREIGN = {  # name of the folder → its config, what the sentence says
    "other": ("model: resnet\nlr: 0.1\n", OTHER),
    "alike": ("network: {name: resnet}\ndataset: {name: digits}\nlr: 1\n", "network=resnet is unknown"),
    "bare": ("seed: 1\ntrainer: {max_steps: 3}\n", "does not fit this version of flowdiff: it has no dataset and no"),
    "tabs": ("network:\n\tname: unet\n", "found character that cannot start any token in line 2"),
}


@pytest.fixture
def foreign(tmp_path):
    for name, (text, _) in FOREIGN.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(text)
    (tmp_path / "other" / "result.json").write_text('{"accuracy": 0.9}')
    return tmp_path


@pytest.mark.parametrize(("command", "key"), [("train", "resume"), ("sample", "run")])
def test_a_foreign_folder_is_refused_and_stays_as_it_is(foreign, command, key):
    before = sorted(foreign.rglob("*"))
    check_mistakes(command, [([f"{key}={name}"], said) for name, (_, said) in FOREIGN.items()], foreign)
    assert [path for path in sorted(foreign.rglob("*")) if path not in before] == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": "abc"}, "seed=abc is not an integer"),
        ({"seed": 10**30}, f"seed={10**30} is not an integer"),
        ({"tags": None}, "tags=None is not a list"),
        ({"plugins": "x.py"}, "plugins=x.py is not a list"),
        ({"trainer": [1]}, r"trainer=\[1\] is not a mapping"),
        ({"trainer": {"max_steps": "abc"}}, "trainer.max_steps=abc is not an integer"),
        ({"flow": [1, 2, 3]}, "flow has no name"),
        ({"flow": {"name": {"a": 1}}}, "flow has no name"),
        ({"dataset": None}, "dataset has no name"),
    ],
)
def test_a_config_with_values_of_other_types_is_a_sentence(tmp_path, change, said):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**settings(*TINY), **change}))
    with pytest.raises(RunError, match=f"does not fit this version of flowdiff: {said}") as caught:
        config.of_run(RunFolder.open(tmp_path))
    assert "\n" not in str(caught.value)


def test_runs_that_another_program_logged_offline_are_not_uploaded(foreign):
    for name in ("other", "run"):
        file = foreign / name / "wandb" / "offline-run-20300101_000000-1a2b3c4d" / "run-1a2b3c4d.wandb"
        file.parent.mkdir(parents=True)
        file.write_bytes(bytes(100))
        (file.parent / "run-gone.wandb").symlink_to("nowhere")
    assert [run.folder.name for run in offline_runs(foreign)] == ["run"]


def test_brackets_in_a_setting_are_printed_as_they_are(capsys):
    _print_tree({"dataset": {"name": "x[/b]", "path": "/data/[/x]/[red]"}, "tags": "[/a]"})
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("= x[/b]", "/data/[/x]/[red]", "tags: [/a]"))
