"""debug=…: every preset does what its first line says, and stays apart from real results."""

import csv
import os
import signal

import pytest
import torch
import yaml
from cli_process import succeed
from runs import TINY, settings, train, without_flow

from flowdiff import config
from flowdiff.runs.identity import run_id
from flowdiff.runs.job import Interrupted
from flowdiff.runs.run_folder import RunFolder
from flowdiff.training.divergence import Divergence
from flowdiff.training.engine import Engine

PRESETS = ["anomaly", "fast_dev_run", "overfit", "profiler"]
TOY = [override for override in TINY if override.startswith(("dataset", "flow", "accelerator"))]
QUICK = [*TOY, "sampler.num_steps=3", "metrics.num_samples=64", "metrics.likelihood=false"]
# F = w·x + 0·√(0·w): the value is right, and the gradient of √ at 0 is 0/0.
PLUGIN = """
import torch
from flowdiff.models.networks.base import Network
from flowdiff.registry import register


@register("network", "broken")
class Broken(Network):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(()))

    def forward(self, x, c_noise, cond=None):
        return self.w * x + 0 * torch.sqrt(0 * self.w)
"""


def losses(path):
    with (path / "metrics.csv").open(newline="") as file:
        return [float(row["train_loss"]) for row in csv.DictReader(file) if row.get("train_loss")]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_says_what_it_is_and_is_no_real_run(preset):
    first, comment, *rest = (config.CONF / "debug" / f"{preset}.yaml").read_text().splitlines()
    assert first == "# @package _global_"
    assert comment.startswith("# ")
    node = yaml.safe_load("\n".join(rest))
    assert node["hydra"]["run"]["dir"].startswith("outputs/debug/")
    assert node["hydra"]["sweep"]["dir"].startswith("multirun/debug/")
    debugged = settings(*TOY, f"debug={preset}")
    assert debugged["debug"] == preset
    assert config.options("debug") == PRESETS
    assert debugged["logger"]["name"] == "csv"
    # The very same settings given by hand are another run.
    by_hand = {key: value for key, value in debugged.items() if key != "debug"}
    assert run_id(by_hand) != run_id(debugged)


def test_fast_dev_run_goes_all_the_way(tmp_path):
    result = train(tmp_path / "run", *TOY, "debug=fast_dev_run")
    assert result["steps"] == 6
    assert "nats_per_dim" in result["metrics"]
    for name in ("samples.png", "trajectory.png", "loss_curve.png", "checkpoints/last.ckpt", "result.json"):
        assert (tmp_path / "run" / name).stat().st_size > 0
    assert len(losses(tmp_path / "run")) == 6


def test_overfit_repeats_one_batch_with_its_noise(tmp_path):
    # Steps too small to change a float32 weight: the loss is the same in every step exactly if all else is.
    still = ["optimizer.lr=1e-20", "optimizer.weight_decay=0", "optimizer.ema_decay=0", "trainer.max_steps=5"]
    train(tmp_path / "one", *QUICK, "debug=overfit", *still)
    train(tmp_path / "stream", *QUICK, *still, "trainer.log_every_n_steps=1", "logger=csv")
    assert len(losses(tmp_path / "one")) == 5
    assert len(set(losses(tmp_path / "one"))) == 1
    assert len(set(losses(tmp_path / "stream"))) == 5


def test_overfit_learns_its_batch_by_heart(tmp_path):
    # A raw network can, down to a loss of 0; 32 points in the plane are many for a flow of a few smooth layers.
    raw = ["network=mlp", "scaling=edm", "trainer.max_steps=150", "optimizer.warmup_steps=10"]
    train(tmp_path / "run", *without_flow(QUICK), "debug=overfit", *raw)
    curve = losses(tmp_path / "run")
    assert sum(curve[-10:]) < 0.2 * sum(curve[:10])


def test_overfit_goes_on_with_the_same_batch(tmp_path, monkeypatch):
    few = ["trainer.max_steps=6"]
    train(tmp_path / "whole", *QUICK, "debug=overfit", *few)
    original, taken = Engine.training_step, []

    def training_step(self, batch, batch_idx):
        taken.append(batch)
        if len(taken) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(Engine, "training_step", training_step)
    with pytest.raises(Interrupted):
        train(tmp_path / "halved", *QUICK, "debug=overfit", *few)
    train(tmp_path / "halved", *QUICK, "debug=overfit", *few)
    assert len(taken) == 6
    assert all(torch.equal(batch.x, taken[0].x) for batch in taken)
    assert losses(tmp_path / "halved") == losses(tmp_path / "whole")


@pytest.mark.parametrize(("name", "said"), [("simple", "optimizer_step"), ("advanced", "function calls")])
def test_profiler_leaves_its_table_in_the_run_folder(tmp_path, name, said):
    train(tmp_path / "run", *QUICK, "debug=profiler", "trainer.max_steps=3", f"trainer.profiler={name}")
    (table,) = (tmp_path / "run").glob("fit-profile*.txt")
    assert said in table.read_text()
    assert RunFolder(tmp_path / "run").is_complete


def test_anomaly_names_the_operation_that_made_the_nan_and_does_not_stop_a_sound_flow(tmp_path):
    (tmp_path / "plugin.py").write_text(PLUGIN)
    given = [
        *without_flow(QUICK),
        f"plugins=[{tmp_path / 'plugin.py'}]",
        "network=broken",
        "scaling=edm",
        "trainer.max_steps=50",
    ]
    where = r"step 1: the norm of the gradient is nan, first in the derivative of network \(Broken\), at σ = "
    with pytest.raises(Divergence, match=where):
        train(tmp_path / "without", *given, "logger=csv")
    with (
        pytest.warns(UserWarning, match="Error detected in SqrtBackward0"),  # with the line of the forward pass
        pytest.raises(RuntimeError, match="'SqrtBackward0' returned nan"),
    ):
        train(tmp_path / "with", *given, "debug=anomaly")
    assert train(tmp_path / "run", *QUICK, "debug=anomaly", "trainer.max_steps=3")["steps"] == 3


@pytest.mark.slow
def test_a_debug_run_lies_where_no_report_of_results_finds_it(tmp_path):
    succeed("train", *TOY, "debug=fast_dev_run", cwd=tmp_path)
    (folder,) = (tmp_path / "outputs" / "debug").iterdir()
    assert RunFolder(folder).is_complete
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["debug"]
