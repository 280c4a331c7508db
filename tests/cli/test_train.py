"""train.py from outside: sentences for mistakes, a folder for a run, nothing done twice."""

import json
import time

import pytest
from cli_process import ROOT, check_mistakes, fresh, script
from runs import TINY, TINY_DIGITS

from flowdiff import registry


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    cwd = tmp_path_factory.mktemp("train")
    done = fresh("train", *TINY, cwd=cwd)
    assert done.returncode == 0, done.stderr
    (folder,) = (cwd / "outputs").iterdir()
    return cwd, folder, done


def test_a_run_leaves_its_folder_and_prints_its_table(trained):
    _, folder, done = trained
    assert {"config.yaml", "train.log", "metrics.csv", "checkpoints", "samples.png", "result.json"} <= {
        p.name for p in folder.iterdir()
    }
    for words in ("sigma_data", "parameters, on cpu", "denoising test loss", "fd_data floor", "results in outputs/"):
        assert words in done.stdout + done.stderr
    assert "sigma_data" in (folder / "train.log").read_text()
    assert "Warning" not in done.stderr


def test_the_same_command_again_is_complete_already(trained):
    cwd, folder, _ = trained
    before = (folder / "result.json").stat().st_mtime_ns
    done = script("train", *TINY, "seed=0", "logger=csv", cwd=cwd)  # said in other words it is the same run
    assert done.returncode == 0
    assert "is complete; force=true" in done.stdout + done.stderr
    assert (folder / "result.json").stat().st_mtime_ns == before
    done = script("train", *TINY, "force=true", cwd=cwd)
    assert done.returncode == 0
    assert (folder / "result.json").stat().st_mtime_ns > before


def test_resume_refuses_another_configuration(trained):
    cwd, folder, _ = trained
    done = script("train", f"resume={folder}", "flow.n_flows=7", cwd=cwd)
    assert done.returncode == 2
    assert "flow.n_flows=7 cannot be changed with resume=" in done.stderr
    assert script("train", f"resume={folder}", "logger=csv", cwd=cwd).returncode == 0


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


def test_a_plugin_activation_trains(tmp_path):
    (tmp_path / "mine.py").write_text(README_PLUGIN)
    done = script("train", *TINY, "plugins=[mine.py]", "activation=arctan", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "outputs").iterdir()
    assert json.loads((folder / "result.json").read_text())["metrics"]["test_loss"] > 0
    done = script("sample", f"run={folder}", "num_samples=4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


README_PLUGIN = """
# mine.py
import torch
from flowdiff.models.activations import Activation
from flowdiff.registry import register


@register("activation", "arctan")
class Arctan(Activation):
    slope_range = (0.0, 1.0)

    def __init__(self): ...

    def plain(self, x):
        return torch.atan(x)

    def slope(self, x):
        return 1 / (1 + x**2)
"""


def test_the_plugin_above_is_that_of_the_guide():
    assert README_PLUGIN.strip() in (ROOT / "docs" / "guides" / "extend.md").read_text()


def test_digits_end_to_end(tmp_path):
    done = script("train", *TINY_DIGITS, "metrics.likelihood=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "bits/dim" in done.stdout


@pytest.mark.slow
def test_two_processes_train_as_one_run(tmp_path):
    done = script("train", *TINY[:-1], "accelerator=ddp", "accelerator.kind=cpu", "accelerator.devices=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "outputs").iterdir()
    assert json.loads((folder / "result.json").read_text())["steps"] == 8
    assert done.stdout.count("denoising test loss") == 1
    assert (done.stdout + done.stderr).count("sigma_data") == 1
