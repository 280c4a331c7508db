"""A run that diverges: it says where, its last checkpoint is from before, and once mended it goes on from there."""

import math
import re

import pytest
import torch
from runs import TINY, settings, train, without_flow

from flowdiff.runs.run_folder import RunFolder
from flowdiff.training import checkpoint as preemption
from flowdiff.training.divergence import Divergence
from flowdiff.training.engine import Engine

# A network whose second layer is bad for the one sample whose noise level is given, in the first or second derivative.
PLUGIN = """
import torch
from flowdiff.models.networks.base import Network
from flowdiff.registry import register


class Bad(torch.nn.Module):
    def forward(self, h, c_noise):
        hit = ((c_noise - {c_noise}).abs() < 1e-6)[:, None]
        return {expression}


@register("network", "fragile")
class Fragile(Network):
    def __init__(self):
        super().__init__()
        self.inner, self.bad, self.outer = torch.nn.Linear(2, 8), Bad(), torch.nn.Linear(8, 2)

    def forward(self, x, c_noise, cond=None):
        return self.outer(self.bad(self.inner(x), c_noise))
"""
FORWARD = "torch.where(hit, torch.nan, h)", "the loss is nan, first in network.bad (Bad)"
BACKWARD = (
    "h + 0 * torch.where(hit, 0 * h, 1 + h**2).sqrt()",
    "the norm of the gradient is nan, first in the derivative of network.bad (Bad)",
)
FRAGILE = ["network=fragile", "scaling=edm", "conditioner=none", "metrics.frechet=false"]


@pytest.fixture
def run(tmp_path):
    """train(expression, batch, *more): a run in which one sample of a batch is bad; and σ of that sample."""
    plugin = tmp_path / "plugin.py"

    def start(expression, batch_idx, *more):
        plugin.write_text(PLUGIN.format(c_noise=0, expression="h"))
        given = [*without_flow(TINY), f"plugins=[{plugin}]", *FRAGILE, *more]
        sigma = sigmas_of(given, batch_idx)[5]
        plugin.write_text(PLUGIN.format(c_noise=0.25 * math.log(sigma), expression=expression))
        return sigma, lambda: train(tmp_path / "run", *given)

    return start


def sigmas_of(given, batch_idx):
    engine = Engine.of(settings(*given))
    engine.data.prepare_data()
    engine.data.setup()
    engine.data.seed = 0
    loader = engine.data.train_dataloader()
    batch = loader.dataset[loader.sampler.batch(batch_idx)]
    engine._trainer = None
    return engine.loss_inputs(batch, batch_idx).sigma.tolist()


def weights(path):
    checkpoint = torch.load(RunFolder(path).checkpoint, weights_only=True)
    return checkpoint["global_step"], {**checkpoint["state_dict"], **checkpoint["current_model_state"]}


@pytest.mark.parametrize(
    ("expression", "said", "looking"),
    [
        pytest.param(*FORWARD, "before a save", id="forward, before a save"),
        pytest.param(*BACKWARD, "at every step", id="backward, at every step"),
        pytest.param(*FORWARD, "at every step", id="forward, at every step", marks=pytest.mark.slow),
        pytest.param(*BACKWARD, "before a save", id="backward, before a save", marks=pytest.mark.slow),
    ],
)
def test_a_run_says_where_it_diverged_and_keeps_what_was_before(run, tmp_path, monkeypatch, expression, said, looking):
    more = []
    if looking == "before a save":  # as on a GPU
        monkeypatch.setattr(preemption, "_reading_is_free", lambda trainer: False)
        more = ["trainer.log_every_n_steps=50"]
    sigma, diverge = run(expression, 5, *more)
    with pytest.raises(Divergence) as error:
        diverge()
    assert str(error.value) == (
        f"Training diverged at step 6: {said}, at σ = {sigma:.4g}. The last good checkpoint is "
        f"{tmp_path / 'run' / 'checkpoints' / 'last.ckpt'} (step 4): train from scratch with a lower optimizer.lr or "
        "trainer.gradient_clip_val."
    )
    folder = RunFolder(tmp_path / "run")
    assert not folder.is_complete
    step, before = weights(folder.path)
    assert step == 4
    assert all(value.isfinite().all() for value in before.values())
    assert "nan" not in folder.metrics.read_text()

    with pytest.raises(Divergence, match=r"at step 6: .* \(step 4\)"):  # gone on from there, it is the same again
        diverge()

    plugin = tmp_path / "plugin.py"  # without its fault; its path lies in the run's config
    plugin.write_text(re.sub(r"return .*", "return h", plugin.read_text(), count=1))
    result = diverge()
    assert result["steps"] == 8
    _, after = weights(folder.path)
    folder.path.rename(tmp_path / "gone_on")
    diverge()
    _, whole = weights(folder.path)
    assert all(torch.equal(value, whole[key]) for key, value in after.items())


def test_the_batch_is_found_among_those_of_a_step(run):
    sigma, diverge = run(FORWARD[0], 6, "trainer.accumulate_grad_batches=2")
    with pytest.raises(
        Divergence, match=rf"at step 4: the loss is nan, first in network.bad .* σ = {sigma:.4g}\. There"
    ):
        diverge()


def test_weights_that_are_not_finite_are_never_saved(run, tmp_path, monkeypatch):
    _, train_soundly = run("h", 0)
    original = Engine.training_step

    def training_step(self, batch, batch_idx):
        if batch_idx == 6:
            with torch.no_grad():
                self.denoiser.network.outer.bias[0] = torch.inf  # and yet no loss says so
            return sum(p.sum() for p in self.denoiser.network.inner.parameters())
        return original(self, batch, batch_idx) if batch_idx < 6 else self.denoiser.network.inner.bias.sum()

    monkeypatch.setattr(Engine, "training_step", training_step)
    with pytest.raises(Divergence, match=r"after step 8: denoiser.denoiser.network.outer.bias is not finite\..*step 4"):
        train_soundly()
    assert weights(tmp_path / "run")[0] == 4
