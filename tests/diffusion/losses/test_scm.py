"""Continuous-time consistency: its tangent is a derivative, that of the paper, and what it learns on a Gaussian."""

import pytest
import torch
from gaussian_consistency import LEVELS, S, gaussian, student, train

from flowdiff import registry
from flowdiff.diffusion.denoiser import Denoiser
from flowdiff.diffusion.losses.scm import output_of, tangent
from flowdiff.models.networks.base import Network
from flowdiff.testing.inputs import perturb

SIGMA = torch.tensor([0.01, 0.1, 0.5, 2.0, 20.0], dtype=torch.float64)


def scm(teacher=None, **settings):
    run = None if teacher is None else "teacher"
    return registry.create("loss", "scm", load={"teacher": teacher}.get, guided=None, **{"run": run, **settings})


def mlp(sigma_min=0.002):
    torch.manual_seed(0)
    given = {"activation": registry.create("activation", "swish"), "width": 16, "depth": 1, "embed_dim": 16}
    network = registry.create("network", "mlp", shape=(3,), cond_dim=0, **given)
    perturb(network, 0.2)
    f = Denoiser(network, registry.create("scaling", "consistency", sigma_min=sigma_min)).double()
    f.sigma_data.fill_(S)
    return f


def batch():
    generator = torch.Generator().manual_seed(1)
    x0, noise = (torch.randn(5, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    return S * x0, noise


def test_the_tangent_equals_finite_differences():
    (x0, noise), f = batch(), mlp()
    x, h = x0 + SIGMA[:, None] * noise, 1e-5 * SIGMA
    ends = [f(x + sign * h[:, None] * noise, SIGMA + sign * h) for sign in (1, -1)]
    slope = (ends[0] - ends[1]) / (2 * h)[:, None]
    found = tangent(f, x, noise, SIGMA, None) / (SIGMA**2 + S**2).sqrt()[:, None]
    torch.testing.assert_close(found, slope, rtol=1e-6, atol=1e-8)  # (1e-5)² and rounding/1e-5


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_in_the_coordinates_of_the_paper_it_is_the_papers_tangent(share):
    """g = −cos²t·(σ_d·F − dx_t/dt) − r·cos t·sin t·(x_t + σ_d·dF/dt) for f = cos t·x_t − sin t·σ_d·F: its F is −ours.

    With σ_min → 0, where f is the paper's.
    """
    (x0, noise), f = batch(), mlp(sigma_min=1e-12)
    t = torch.atan(SIGMA / S)

    def at(t):
        x_t = t.cos()[:, None] * x0 + t.sin()[:, None] * S * noise
        sigma = S * t.tan()
        return x_t, -output_of(f, x_t / t.cos()[:, None], sigma, None)

    h = 1e-6
    (x_t, F), (ahead, F_ahead), (behind, F_behind) = at(t), at(t + h), at(t - h)
    dx, dF = (ahead - behind) / (2 * h), (F_ahead - F_behind) / (2 * h)
    cos, sin = t.cos()[:, None], t.sin()[:, None]
    g = -(cos**2) * (S * F - dx) - share * cos * sin * (x_t + S * dF)
    out = scm(warmup_steps=10).at(round(10 * share))(f, x0, SIGMA, noise)
    torch.testing.assert_close(out.parts["tangent"], g.norm(dim=1), rtol=1e-5, atol=1e-7)
    normalised = g / (g.norm(dim=1, keepdim=True) + 0.1)
    torch.testing.assert_close(out.loss, normalised.square().mean(1), rtol=1e-5, atol=1e-7)


class Exact(Network):
    """F of the consistency function x·√((s² + σ_min²)/(s² + σ²)), from c_in·x and ¼ ln σ."""

    def __init__(self):
        super().__init__()
        self.scaling = registry.create("scaling", "consistency")
        self.unused = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, c_noise, cond=None):
        sigma = (4 * c_noise).exp()
        c_skip, c_out, c_in, _ = self.scaling(sigma, S)
        shrunk = ((S**2 + 0.002**2) / (S**2 + sigma**2)).sqrt()
        return ((shrunk - c_skip) / c_out / c_in)[:, None] * x + self.unused


def test_it_vanishes_for_the_consistency_function_of_its_teacher():
    f = Denoiser(Exact(), registry.create("scaling", "consistency")).double()
    f.sigma_data.fill_(S)
    x0, noise = batch()
    of_teacher, without = scm(gaussian(3)), scm()
    assert float(of_teacher(f, x0, SIGMA, noise).parts["tangent"].max()) < 1e-9
    assert float(without(f, x0, SIGMA, noise).parts["tangent"].min()) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("teacher", [None, gaussian()], ids=["training", "distillation"])
def test_it_learns_the_consistency_function_of_a_gaussian(teacher):
    """f(x, σ) = x·√((s² + σ_min²)/(s² + σ²)) to 1e-2 of s.

    Without a teacher the tangent holds the noise of the sample. With c = 0.1 nearly every tangent has length 1, and so
    has its noise, whose error stays at 1e-2 with 512 samples; with c = 1 it falls with the tangent.
    """
    f = student()
    if teacher is None:
        train(f, scm(warmup_steps=300, tangent_constant=1.0), count=4000, p_mean=0.0)
    else:
        train(f, scm(teacher, warmup_steps=300))
    found = f((S**2 + LEVELS**2).sqrt()[:, None].expand(-1, 4), LEVELS) / S
    torch.testing.assert_close(found, torch.full_like(found, (S**2 + 0.002**2) ** 0.5 / S), rtol=0, atol=1e-2)
