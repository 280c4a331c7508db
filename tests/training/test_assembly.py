"""What is assembled does what the configuration says."""

import shutil

import pytest
import torch
from flow_cases import perturb
from runs import settings

from flowdiff.noise import step_generator
from flowdiff.registry import create
from flowdiff.runs.identity import run_id
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


def test_tf32_is_what_was_asked_for(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    given = settings("logger=csv", "accelerator=cpu")["accelerator"]
    for tf32, precision in ((True, "high"), (False, "highest")):
        try:
            create("accelerator", {**given, "tf32": tf32}).set_tf32()
            assert torch.backends.cudnn.allow_tf32 is tf32
            assert torch.get_float32_matmul_precision() == precision
        finally:
            torch.set_float32_matmul_precision("highest")
    plain = settings("logger=csv")
    older = {key: value for key, value in plain["accelerator"].items() if key not in ("tf32", "channels_last")}
    assert run_id({**plain, "accelerator": older}) == run_id(plain)
    assert run_id(settings("logger=csv", "accelerator.tf32=true")) != run_id(plain)
    assert run_id(settings("logger=csv", "accelerator.channels_last=true")) == run_id(plain)


@pytest.mark.slow
def test_channels_last_changes_the_layout_and_no_number():
    small = ["network=unet", "scaling=edm", "network.channels=[8,16]", "network.norm_groups=4"]
    small += ["logger=csv", "accelerator=cpu", "network.attention=[false,true]"]
    plain, other = (Engine.of(settings(*small, *more)) for more in ([], ["accelerator.channels_last=true"]))
    perturb(plain.denoiser, 0.1)
    other.load_state_dict(plain.state_dict())
    weight = other.denoiser.network.unet.down_blocks[0].resnets[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    x, sigma = torch.linspace(-1, 1, 128).view(2, 1, 8, 8), torch.ones(2)
    cond = plain.conditioner.null(2)
    # sums in another order
    torch.testing.assert_close(plain.denoiser(x, sigma, cond), other.denoiser(x, sigma, cond), rtol=1e-4, atol=1e-5)


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
