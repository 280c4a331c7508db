"""What is assembled does what the configuration says."""

import shutil

import pytest
import torch
from flow_cases import perturb
from runs import settings

from flowdiff.noise import step_generator
from flowdiff.training.engine import Engine

VECTORS = ["flow=realnvp", "flow.n_flows=2", "flow.hidden=16"]
IMAGES = ["dataset=digits", "flow=glow", "flow.n_flows=1", "flow.hidden=4", "flow.levels=1"]


def gradient(*overrides: str) -> tuple[float, torch.Tensor]:
    """The loss of a fixed batch and its gradient in all parameters, away from the start."""
    torch.manual_seed(0)
    engine = Engine.of(settings("logger=csv", "accelerator=cpu", "network.embed_dim=16", *overrides))
    engine.measure()
    perturb(engine.denoiser.network.flow, 0.2).train()
    batch, generator = engine.data.train[:32], step_generator(0, 0)
    x0 = engine.data.to_model(batch.x)
    sigma, noise = engine.sigma_sampler(32, generator), torch.randn(x0.shape, generator=generator)
    cond = engine.conditioner(batch.label, generator)
    loss = engine.loss(engine.denoiser.denoiser, x0, sigma, noise, cond).loss.mean()
    found = torch.autograd.grad(loss, list(engine.denoiser.network.parameters()))
    return float(loss), torch.cat([g.flatten() for g in found])


@pytest.mark.parametrize(("run", "tf32"), [(IMAGES, False), (["network=unet", "scaling=edm"], True)])
def test_the_convolutions_of_a_density_are_not_rounded_to_tf32(run, tf32, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # torch's default
    Engine.of(settings("logger=csv", *run))
    assert torch.backends.cudnn.allow_tf32 is tf32


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own, of its own workings
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize(
    "run",
    [
        ["dataset=two_moons", *VECTORS, "loss.gradient=directional", "flow.checkpoint=true"],
        [*IMAGES, "loss.gradient=directional"],
    ],
    ids=["directional, recomputed, of vectors", "directional, of images"],
)
def test_a_compiled_flow_trains_the_same(run):
    value, exact = gradient(*run)
    same, found = gradient(*run, "accelerator.compile=true")
    assert same == pytest.approx(value, rel=1e-5)
    # Rounding; the central difference divides that of log p by the step, 2 % of σ.
    assert (found - exact).norm() < 1e-3 * exact.norm()
