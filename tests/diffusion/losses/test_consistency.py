"""Consistency training: pairs of levels by their formulas, the boundary, and the function it learns on a Gaussian."""

import math

import pytest
import torch
from torch import nn

import flowdiff
from flowdiff import registry
from flowdiff.diffusion.denoiser import Denoiser
from flowdiff.errors import ConfigurationError
from flowdiff.models.networks.base import Network

SIGMA = torch.tensor([0.001, 0.002, 0.01, 0.3, 1.0, 5.0, 79.0, 200.0], dtype=torch.float64)
KINDS = ("ect", "ict", "ct")


def loss_of(steps, step=0):
    return registry.create("loss", "consistency", steps=steps, stage_steps=250, stages=8).at(step)


@pytest.mark.parametrize("steps", KINDS)
@pytest.mark.parametrize("step", [0, 600, 10_000])
def test_r_lies_below_t_and_both_in_the_range(steps, step):
    t, r = loss_of(steps, step).pairs(SIGMA)
    assert (t >= 0.002 * (1 - 1e-12)).all()
    assert (r < t).all()
    assert ((r == 0) | (r >= 0.002 * (1 - 1e-12))).all()
    if steps != "ect":
        assert t.max() <= 80 * (1 + 1e-12)


def test_ect_has_the_papers_mapping():
    t = torch.tensor([0.5, 3.0], dtype=torch.float64)
    for stage in range(8):
        found = loss_of("ect", 250 * stage).pairs(t)[1]
        expected = [a * max(0.0, 1 - 2.0 ** -(stage + 1) * (1 + 8 / (1 + math.exp(a)))) for a in (0.5, 3.0)]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_ict_doubles_its_levels_and_takes_neighbours():
    assert [loss_of("ict", 250 * stage).num_levels for stage in range(9)] == [11, 21, 41, 81, 161, 321, 641, 1281, 1281]
    t, r = loss_of("ict").pairs(torch.tensor([1.0], dtype=torch.float64))
    grid = registry.create("schedule", "karras")(11)[:-1].flip(0)
    above = int((grid < 1.0).sum())
    assert (t.item(), r.item()) == (grid[above].item(), grid[above - 1].item())


def test_ct_begins_with_two_levels_and_ends_with_151():
    assert [loss_of("ct", step).num_levels for step in (0, 2000, 9000)] == [2, 151, 151]


class Linear(Network):
    """F = g(¼ ln σ)·x on vectors, with which f can be that of any Gaussian around 0."""

    def __init__(self):
        super().__init__()
        self.g = nn.Sequential(nn.Linear(1, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))

    def forward(self, x, sigma, cond=None):
        return self.g(sigma[:, None]) * x


def consistency_function(sigma_data):
    torch.manual_seed(0)
    denoiser = Denoiser(Linear(), registry.create("scaling", "consistency"))
    denoiser.sigma_data.fill_(sigma_data)
    return denoiser


def test_it_is_the_identity_at_the_boundary():
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    f = consistency_function(0.5).double()
    torch.testing.assert_close(f(x, torch.full((4,), 0.002, dtype=torch.float64)), x, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "ct_steps"), [("ect", 150), ("ict", 150), ("ct", 150), ("ct", 600)])
def test_every_kind_learns_the_consistency_function_of_a_gaussian(steps, ct_steps):
    """f(x, σ) = x·√((s² + σ_min²)/(s² + σ²)), up to 1e-2 of the standard deviation s of the data.

    With 151 levels ct learns what its grid makes of it, which is 2 % less; a grid of 601 has a quarter of this bias.
    """
    s, count = 0.5, 3000
    f = consistency_function(s)
    loss = registry.create("loss", "consistency", steps=steps, stage_steps=count // 10, stages=8, ct_steps=ct_steps)
    draws = registry.create("sigma_sampler", "edm", p_mean=-1.1, p_std=2.0, stratified=True)
    optimizer = torch.optim.Adam(f.parameters(), 3e-3)
    falls = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, count)
    generator = torch.Generator().manual_seed(1)
    for step in range(count):
        x0, noise = s * torch.randn(512, 4, generator=generator), torch.randn(512, 4, generator=generator)
        value = loss.at(step)(f, x0, draws(512, generator), noise).loss.mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        falls.step()
    sigma = torch.tensor([0.02, 0.1, 0.5, 2.0, 10.0])
    spread = (s**2 + sigma**2).sqrt()[:, None]  # of x
    found = f(spread, sigma) / s
    expected = torch.full_like(found, (s**2 + 0.002**2) ** 0.5 / s)
    if ct_steps == 150 and steps == "ct":
        expected = expected * biased_by_its_grid(s, sigma)[:, None]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-2)


def biased_by_its_grid(s, sigma, num_steps=150):
    """What ct with perfect training learns of a Gaussian, divided by the consistency function, (B,).

    f at t learns f of the mean of x' given x, which is x·(s² + t·r)/(s² + t²), where the trajectory goes through
    x·√((s² + r²)/(s² + t²)). The ratio of the two is √(1 − s²(t − r)²/((s² + r²)(s² + t²))), and those of all steps
    below t multiply.
    """
    grid = registry.create("schedule", "karras")(num_steps + 1)[:-1].flip(0)
    r, t = grid[:-1], grid[1:]
    ratio = (1 - s**2 * (t - r) ** 2 / ((s**2 + r**2) * (s**2 + t**2))).sqrt().cumprod(0)
    return ratio[torch.searchsorted(t, sigma.double()).clamp(max=len(t) - 1)].float()


def test_the_grid_of_ct_biases_it_by_two_percent_and_the_bias_falls_as_one_over_its_steps():
    at_two = [1 - biased_by_its_grid(0.5, torch.tensor([2.0]), n).item() for n in (150, 600)]
    assert at_two[0] == pytest.approx(0.02, abs=2e-3)
    assert at_two[0] / at_two[1] == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["network=score_flow", "scaling=score"], "Jacobian of a flow's D is symmetric"),
        (["network=mlp", "scaling=edm", "sampler=consistency"], "takes a consistency function and not a denoiser"),
        (["network=mlp", "scaling=consistency"], "would take for a denoiser"),
    ],
)
def test_what_does_not_go_together_is_refused(overrides, words):
    with pytest.raises(ConfigurationError, match=words):
        flowdiff.build("loss=consistency", *overrides)


def test_samplers_of_denoisers_and_of_consistency_functions_are_told_apart():
    consistency = ("network=mlp", "scaling=consistency", "loss=consistency", "sampler=consistency")
    of_run = flowdiff.build(*consistency).denoiser
    assert of_run.sample(2).shape == (2, 1, 8, 8)
    with pytest.raises(ConfigurationError, match=r"Heun takes a denoiser.*sampler=consistency"):
        of_run.sample(2, sampler=registry.create("sampler", "heun"))
    with pytest.raises(ConfigurationError, match="this run's D is a denoiser"):
        flowdiff.build("network=mlp", "scaling=edm").denoiser.sample(
            2, sampler=registry.create("sampler", "consistency")
        )
