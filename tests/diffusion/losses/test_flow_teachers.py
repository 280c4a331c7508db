"""What flows teach: their inverse in one pass, and noise that belongs to a sample."""

import pytest
import torch
from small_models import flow_of, score_flow_of
from torch import nn

from flowdiff import config, registry
from flowdiff.diffusion.denoiser import Denoiser
from flowdiff.errors import ConfigurationError
from flowdiff.testing import oracles
from flowdiff.testing.inputs import perturb
from flowdiff.testing.models import model_of

S, TOP = 0.5, 80.0


def flow(far=0.0):
    """A model of a flow, N(0, s²) in the plane unless it is moved far from that."""
    network = score_flow_of(flow_of("realnvp", (2,), 8, n_flows=2, hidden=16), (2,))
    network.fit(iter([S * torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])]))
    if far:
        perturb(network.flow, far)
    return model_of(network, shape=(2,), sigma_data=S)


class Times(nn.Module):
    """D = a(σ)·x."""

    sigma_data = torch.tensor(S)

    def __init__(self, a):
        super().__init__()
        self.a = a

    def forward(self, x, sigma, cond=None):
        return self.a(sigma)[:, None] * x


def batch(n=64):
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(n, 2, generator=generator) for _ in range(2))
    return S * x0, torch.logspace(-1, 1.5, n), noise


def inverse(model, **settings):
    runtime = {"load": {"flow": model}.get, "run": "flow"}
    return registry.create("loss", "inverse_distillation", **{**runtime, "sigma": 0.002, **settings})


@pytest.mark.parametrize("pairs", ["generated", "encoded"])
def test_the_flows_own_map_has_no_loss_and_another_one_its_mean_square(pairs):
    """The flow of N(0, s²) maps z to √(s² + σ²)·z."""
    loss = inverse(flow(), pairs=pairs)
    right = (S**2 + 0.002**2) ** 0.5 / TOP
    exact, off = Times(lambda sigma: 0 * sigma + right), Times(lambda sigma: 0 * sigma + 1.1 * right)
    assert float(loss(exact, *batch()).loss.max()) < 1e-10
    x0, sigma, noise = batch()
    x = S * noise if pairs == "generated" else x0
    torch.testing.assert_close(loss(off, x0, sigma, noise).loss, 0.01 * x.square().mean(1), rtol=0.05, atol=1e-4)


def test_its_numbers_are_the_mean_square_over_new_pairs():
    class Model(Times):
        first_stage, num_classes = flow().first_stage, None

    model = Model(lambda sigma: 0 * sigma + 1.1 * S / TOP)
    found = inverse(flow(), pairs="encoded").numbers(model, 4000, seed=0)
    assert found == {"teacher_distance": pytest.approx(0.01 * S**2, rel=0.1)}


@pytest.mark.slow
def test_a_network_learns_the_inverse_of_a_flow():
    teacher = flow(far=0.5)
    torch.manual_seed(0)
    given = {"activation": registry.create("activation", "swish"), "width": 128, "depth": 2, "embed_dim": 16}
    network = registry.create("network", "mlp", shape=(2,), cond_dim=0, **given)
    f = Denoiser(network, registry.create("scaling", "consistency"))
    f.sigma_data.fill_(S)
    loss, count = inverse(teacher), 1500
    optimizer = torch.optim.Adam(f.parameters(), 3e-3)
    falls = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, count)
    generator = torch.Generator().manual_seed(1)
    values = []
    for _ in range(count):
        z = torch.randn(256, 2, generator=generator)
        value = loss(f, z, torch.ones(256), z).loss.mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        falls.step()
        values.append(float(value.detach()))
    assert values[-1] < 2e-3 * values[0]


def paired(loss, model, **settings):
    runtime = {"load": {"flow": model}.get, "run": "flow", "pairing": "flow", "pairing_sigma": 0.002}
    weighting = registry.create("weighting", "flow_matching")
    return registry.create("loss", loss, weighting=weighting, **{**runtime, **settings})


def test_with_the_noise_of_a_flow_paths_are_straight_and_one_step_is_exact():
    """Of N(0, s²): x = x0 + σ·x0/s, so D = x/(1 + σ/s) has no loss, and a step from any σ to 0 gives deviation s."""
    straight = Times(lambda sigma: 1 / (1 + sigma / S))
    assert float(paired("denoising", flow())(straight, *batch()).loss.max()) < 1e-3  # pairing_sigma², weighted
    independent = registry.create("loss", "denoising", weighting=registry.create("weighting", "flow_matching"))
    assert float(independent(straight, *batch()).loss.mean()) > 0.1
    top = torch.full((4000,), TOP)
    x0 = straight(TOP * torch.randn(4000, 2, generator=torch.Generator().manual_seed(1)), top)
    assert float(x0.std()) == pytest.approx(S, rel=0.04)  # 5 standard errors of 8000 numbers, and s/σ_max


def test_with_the_noise_of_a_flow_a_sample_is_the_end_of_its_own_trajectory():
    straight = Times(lambda sigma: 1 / (1 + sigma / S))
    x0, sigma, noise = batch()
    loss = paired("consistency", flow(), steps="ict")
    assert float(loss(straight, x0, sigma, noise).loss.max()) < 0.05  # x0 itself is noised by pairing_sigma
    plain = registry.create("loss", "consistency", steps="ict")
    assert float(plain(straight, x0, sigma, noise).loss.mean()) > 0.1


@pytest.mark.parametrize("loss", ["denoising", "consistency"])
def test_pairing_and_its_run_belong_together(loss):
    with pytest.raises(ConfigurationError, match=r"loss=.* loss\.pairing=flow needs a run that teaches"):
        paired(loss, flow(), run=None)
    with pytest.raises(ConfigurationError, match=r"loss\.pairing is independent: set loss\.pairing=flow, or remove"):
        paired(loss, flow(), pairing="independent")


def test_who_teaches_has_to_be_a_flow_of_normal_base_points():
    other = model_of(oracles.two_by_two().network, shape=(2,), sigma_data=S)
    with pytest.raises(ConfigurationError, match=r"loss\.run=flow is not a flow whose base points are N\(0, I\)"):
        inverse(other).check(other)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["sampler.num_steps=2"], "which is one step; set sampler.num_steps=1"),
        (["sampler.num_steps=1", "schedule.sigma_max=40"], "at the schedule's largest level"),
    ],
)
def test_a_map_is_sampled_in_one_step_from_its_own_noise(overrides, words):
    consistency = ["network=mlp", "scaling=consistency", "sampler=consistency"]
    with pytest.raises(ConfigurationError, match=words):
        config.check(config.compose(["loss=inverse_distillation", *consistency, *overrides]))
