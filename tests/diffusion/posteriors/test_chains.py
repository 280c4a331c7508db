"""Chains draw from posteriors that are known in closed form, and say how much they have seen of them."""

import math

import pytest
import torch
from gaussian_flow import GaussianFlow
from small_models import flow_of, score_flow_of

from flowdiff import registry
from flowdiff.diffusion.posteriors import Drawing
from flowdiff.diffusion.posteriors.chains import BasePoints, Scaled, Walk, walk
from flowdiff.diffusion.posteriors.diagnostics import effective_size, split_rhat
from flowdiff.errors import ConfigurationError
from flowdiff.testing import oracles
from flowdiff.testing.models import ScoreOf, model_of

DIM, SIGMA_Y, LEVEL = 4, 0.3, 0.1
CHAINS = ("hmc", "mala")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=seeded(seed))


ROOT = normal(DIM, DIM, seed=3)
PRIOR = oracles.Gaussian(normal(DIM, seed=4), ROOT @ ROOT.T / DIM + 0.1 * torch.eye(DIM))
A = registry.create("measurement", "compressed", shape=(DIM,), share=0.5, sigma_y=SIGMA_Y)
Y = normal(3, 2, seed=5)
SHORT = {"sigma": LEVEL, "warm_start": "pigdm"}


def posterior(mean, S, y):
    """Mean and covariance of x given y, x ~ N(mean, S)."""
    rows = A.rows
    gain = S @ rows.T @ torch.linalg.inv(rows @ S @ rows.T + SIGMA_Y**2 * torch.eye(len(rows), dtype=torch.float64))
    return mean + gain @ (y - rows @ mean), S - gain @ rows @ S


@pytest.mark.parametrize("name", CHAINS)
def test_moments_of_a_gaussian_posterior_are_those_of_the_closed_form(name):
    """Of a density without base points, x in standard units; three measurements at once."""
    more = {"hmc": {"leapfrog": 4, "warm_up": 60, "kept": 130}, "mala": {"warm_up": 200, "kept": 800}}[name]
    method = registry.create("posterior", name, measurement=A, sigma_data=1.0, chains=8, **SHORT, **more)
    n = 1000
    draws = method.draw(model_of(PRIOR.network, shape=(DIM,), sigma_data=1.0), Y.float(), Drawing(n))
    noised = PRIOR.covariance + LEVEL**2 * torch.eye(DIM)
    assert draws.rhat.max() < 1.05
    for x, y, effective in zip(draws.x.double(), Y, draws.effective, strict=True):
        mean, covariance = posterior(PRIOR.mean, noised, y)
        spread = covariance.diagonal().sqrt()
        size = min(n, float(effective))  # 5 standard errors of so many independent draws
        assert ((x.mean(0) - mean).abs() <= 5 * spread / size**0.5).all()
        assert ((x.T.cov() - covariance).abs() <= 5 * (2 / size) ** 0.5 * torch.outer(spread, spread)).all()


def test_a_flow_walks_in_its_base_points():
    """The posterior of N(0.2, 0.5²) at σ = 0.1 is the closed form's, in float32 as runs have it."""
    model = model_of(GaussianFlow(0.2, 0.5), shape=(DIM,))
    method = registry.create(
        "posterior", "hmc", measurement=A, sigma_data=0.5, chains=8, leapfrog=5, warm_up=100, kept=300,
        sigma=LEVEL, accept=0.8, warm_start="none",
    )  # fmt: skip
    draws = method.draw(model, Y.float(), Drawing(1000))
    S = (0.5**2 + LEVEL**2) * torch.eye(DIM, dtype=torch.float64)
    for x, y, effective in zip(draws.x.double(), Y, draws.effective, strict=True):
        mean, covariance = posterior(torch.full((DIM,), 0.2, dtype=torch.float64), S, y)
        spread, size = covariance.diagonal().sqrt(), min(1000, float(effective))
        assert ((x.mean(0) - mean).abs() <= 5 * spread / size**0.5).all()
        assert ((x.T.cov() - covariance).abs() <= 5 * (2 / size) ** 0.5 * torch.outer(spread, spread)).all()


FLOWS = registry.names("flow")


@pytest.mark.parametrize("name", FLOWS)
def test_density_and_slope_in_base_points(name):
    """log p(x) = log π(z) + log|det ∂z/∂x|, and the derivative of decode is the inverse of that of encode."""
    shape = (1, 2, 2) if name in ("glow", "hybrid", "patchwise") else (DIM,)
    network = score_flow_of(flow_of(name, shape, embed_dim=8), shape).double().eval()
    generator = seeded()
    for p in network.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    network.requires_grad_(False)
    sigma = torch.full((2,), 0.5, dtype=torch.float64)
    coordinates = BasePoints(network, sigma, None)
    z = normal(2, *shape).requires_grad_(True)
    x = coordinates.sample(z)
    towards = normal(2, *shape, seed=1)
    (slope,) = torch.autograd.grad(x, z, towards)
    x = x.detach()
    full = torch.autograd.functional.jacobian(lambda x: network.encode(x, sigma).flatten(1).sum(0), x)
    J = full.flatten(2).transpose(0, 1)  # ∂z/∂x of each sample, (2, D, D)
    tolerance = 1e-3 if name == "ffjord" else 1e-7  # its ODE is solved to a tolerance, in both directions
    expected = torch.linalg.solve(J.mT, towards.flatten(1)[..., None])[..., 0]
    torch.testing.assert_close(slope.flatten(1), expected, rtol=tolerance, atol=tolerance)
    z = coordinates.of(x)
    found = coordinates.log_prior(z, x) + torch.linalg.slogdet(J).logabsdet
    torch.testing.assert_close(found, network.log_prob(x, sigma), rtol=tolerance, atol=tolerance)


def test_density_of_the_base_points_of_a_mixture():
    """Its base is not N(0, I)."""
    network = score_flow_of(flow_of("realnvp", (3,), embed_dim=8), (3,), components=2, num_classes=None).double()
    network.fit(normal(200, 3).split(100))
    network.fit_classes([(normal(200, 3), torch.zeros(200, dtype=torch.int64))])
    network.eval().requires_grad_(False)
    sigma, x = torch.full((2,), 0.5, dtype=torch.float64), normal(2, 3, seed=2)
    full = torch.autograd.functional.jacobian(lambda x: network.encode(x, sigma).sum(0), x)
    logdet = torch.linalg.slogdet(full.transpose(0, 1)).logabsdet
    found = network.log_base(network.encode(x, sigma), sigma)
    torch.testing.assert_close(found + logdet, network.log_prob(x, sigma))
    normal_base = -0.5 * (network.encode(x, sigma) ** 2 + math.log(2 * math.pi)).sum(1)
    assert not torch.allclose(found, normal_base)


def test_density_in_standard_units():
    sigma = torch.tensor([0.1, 2.0], dtype=torch.float64)
    coordinates, x = Scaled(PRIOR.network, 0.5, sigma, None), normal(2, DIM)
    z = coordinates.of(x)
    torch.testing.assert_close(coordinates.sample(z), x)
    found = coordinates.log_prior(z, x) - DIM * coordinates.scale.log()
    torch.testing.assert_close(found, PRIOR.log_prob(x, sigma))


def test_proposals_that_overflow_are_rejected():
    def cliff(z):
        return torch.where(z.abs() < 2, -0.5 * z**2, -torch.inf).sum(2)

    kept = walk(cliff, torch.zeros(1, 4, 1, dtype=torch.float64), Walk(3, 50, 500, 0.8), seeded())
    assert (kept.z.abs() < 2).all()
    assert 0.5 < float(kept.acceptance) < 1
    exact = 0.88  # standard deviation of N(0, 1) cut at ±2, √(1 − 4φ(2)/(2Φ(2) − 1))
    assert float(kept.z.std()) == pytest.approx(exact, rel=0.1)


@pytest.mark.parametrize("rho", [0.0, 0.8])
def test_effective_size_of_an_autoregressive_chain(rho):
    """τ = (1 + ρ)/(1 − ρ); the estimate of 4 chains of 20,000 states is within 10 %."""
    noise, x = normal(20000, 4, 2), torch.zeros(20000, 4, 2, dtype=torch.float64)
    x[0] = noise[0]
    for i in range(1, len(x)):
        x[i] = rho * x[i - 1] + (1 - rho**2) ** 0.5 * noise[i]
    expected = 80000 * (1 - rho) / (1 + rho)
    assert torch.allclose(effective_size(x), torch.full((2,), expected, dtype=torch.float64), rtol=0.1)
    assert (split_rhat(x) < 1.01).all()


def test_chains_that_disagree_are_found():
    x = normal(200, 4, 3)
    apart = x + torch.tensor([0.0, 0.0, 0.0, 3.0])[None, :, None]
    drifting = x + torch.linspace(-2, 2, 200)[:, None, None]
    assert (split_rhat(apart) > 1.5).all()
    assert (split_rhat(drifting) > 1.3).all()
    assert (effective_size(apart) < 30).all()
    assert torch.equal(split_rhat(torch.zeros(10, 2, 1)), torch.ones(1, dtype=torch.float64))


def test_what_chains_cannot_draw_from_is_refused():
    density, raw = (model_of(network, shape=(DIM,)) for network in (PRIOR.network, ScoreOf(PRIOR.network)))
    exact = registry.create("measurement", "compressed", shape=(DIM,), sigma_y=0.0)
    for name in CHAINS:
        method = registry.create("posterior", name, measurement=A, sigma_data=1.0)
        with pytest.raises(ConfigurationError, match="walks on a density"):
            method.draw(raw, Y.float(), Drawing(2))
        with pytest.raises(ConfigurationError, match=r"is more than the .* states that 8 chains keep"):
            method.draw(density, Y.float(), Drawing(10**6))
        with pytest.raises(ConfigurationError, match=r"set measurement.sigma_y > 0"):
            registry.create("posterior", name, measurement=exact, sigma_data=1.0).draw(density, Y.float(), Drawing(2))
    with pytest.raises(ConfigurationError, match="warm_start=mala walks chains itself"):
        registry.create("posterior", "hmc", measurement=A, sigma_data=1.0, warm_start="mala")
    with pytest.raises(ConfigurationError, match="a start at sigma=5000 is not allowed"):
        registry.create("posterior", "hmc", measurement=A, sigma_data=1.0, sigma=5000.0).draw(
            density, Y.float(), Drawing(2)
        )
