"""train.py from outside: sentences for mistakes, a folder for a run, nothing done twice."""

import json
import re
import time

import pytest
from cli_process import ROOT, check_mistakes, fresh, outcomes, script, succeed
from runs import TINY, TINY_DIGITS

from flowdiff import registry


def test_a_run_leaves_its_folder_and_its_command_again_does_nothing_twice(tmp_path):
    done = fresh("train", *TINY, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "outputs").iterdir()
    files = {"config.yaml", "train.log", "metrics.csv", "checkpoints", "samples.png", "result.json"}
    assert files <= {p.name for p in folder.iterdir()}
    for words in ("sigma_data", "parameters, on cpu", "denoising test loss", "fd_data floor", "results in outputs/"):
        assert words in done.stdout + done.stderr
    assert "sigma_data" in (folder / "train.log").read_text()
    assert "Warning" not in done.stderr
    before = (folder / "result.json").stat().st_mtime_ns
    again = [[*TINY, "seed=0", "logger=csv"], [f"resume={folder}", "logger=csv"]]  # the same run in other words
    for status, stderr in outcomes("train", again, tmp_path):
        assert status == 0
        assert "is complete; force=true" in stderr
    other = [f"resume={folder}", "flow.n_flows=7"]
    check_mistakes("train", [(other, "flow.n_flows=7 cannot be changed with resume=")], tmp_path)
    assert (folder / "result.json").stat().st_mtime_ns == before
    assert script("train", *TINY, "force=true", cwd=tmp_path).returncode == 0
    assert (folder / "result.json").stat().st_mtime_ns > before


def test_a_command_without_arguments_is_the_default_run(tmp_path):
    (tmp_path / "file").touch()
    cache = str(tmp_path / "file" / "cache")  # cannot be made, so the run is refused before its first step
    done = script("train", cwd=tmp_path, FLOWDIFF_CACHE=cache)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert done.stderr.startswith("metrics.cache_dir: ")
    assert [path.parent.name[:8] for path in tmp_path.glob("outputs/*/config.yaml")] == ["default-"]
    done = script("sample", cwd=tmp_path)
    assert (done.returncode, done.stderr[:33]) == (2, "sample.py needs run=<run folder>:")


@pytest.mark.slow
def test_the_first_command_of_the_readme(tmp_path):
    done = fresh("train", cwd=tmp_path, WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    (result,) = tmp_path.glob("outputs/default-*/result.json")
    numbers = json.loads(result.read_text())["metrics"]
    assert numbers["fd_digits_cnn"] < 1.0  # as README and experiments/default_run say; three seeds have 0.71 to 0.86
    assert numbers["precision"] > 0.5


MISTAKES = [
    (["flow.n_flows=many"], "flow.n_flows=many is not allowed"),
    (["network=unet", "loss=nll"], "loss=nll network=unet do not go together"),
    (["schedule.sigma_min=90"], "sigma_min"),
    (["dataset=two_moons", "network=unet"], "network=unet was given samples of shape (2,)"),
    (["flow=linear_activation", "scaling=edm"], "do not go together"),
    (["resume=nowhere"], "run=nowhere does not exist"),
]


def test_mistakes_end_as_one_sentence_and_leave_nothing(tmp_path):
    check_mistakes("train", MISTAKES, tmp_path)
    assert not list(tmp_path.rglob("*"))


def test_a_mistake_is_found_quickly(tmp_path):
    began = time.monotonic()
    done = script("train", "flow=reelnvp", cwd=tmp_path)
    said = f"flow=reelnvp is unknown: did you mean 'realnvp'? Allowed are {', '.join(registry.names('flow'))}.\n"
    assert (done.returncode, done.stderr) == (2, said)
    assert time.monotonic() - began < 10


def test_full_error_shows_the_traceback(tmp_path):
    done = script("train", "flow=reelnvp", cwd=tmp_path, HYDRA_FULL_ERROR="1")
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def test_the_plugin_of_the_guide_trains(tmp_path):
    guide = (ROOT / "docs" / "guides" / "extend.md").read_text()
    (tmp_path / "mine.py").write_text(re.search(r"```python\n(# mine\.py\n.*?)```", guide, re.DOTALL)[1])
    succeed("train", *TINY, "plugins=[mine.py]", "activation=arctan", cwd=tmp_path)
    (folder,) = (tmp_path / "outputs").iterdir()
    assert json.loads((folder / "result.json").read_text())["metrics"]["test_loss"] > 0
    succeed("sample", f"run={folder}", "num_samples=4", cwd=tmp_path)


def test_digits_end_to_end(tmp_path):
    assert "bits/dim" in script("train", *TINY_DIGITS, "metrics.likelihood=true", cwd=tmp_path).stdout


@pytest.mark.slow
def test_two_processes_train_as_one_run(tmp_path):
    ddp = ["accelerator=ddp", "accelerator.kind=cpu", "accelerator.devices=2"]
    done = succeed("train", *TINY[:-1], *ddp, cwd=tmp_path)
    (folder,) = (tmp_path / "outputs").iterdir()
    assert json.loads((folder / "result.json").read_text())["steps"] == 8
    assert done.stdout.count("denoising test loss") == 1
    assert (done.stdout + done.stderr).count("sigma_data") == 1
