"""Steered denoisers on Gaussians, whose posterior score is known at every noise level."""

import pytest
import torch

from flowdiff import registry
from flowdiff.diffusion.posteriors.steering import Steered
from flowdiff.diffusion.samplers.ancestral import Ancestral
from flowdiff.diffusion.schedules.formulas import Karras
from flowdiff.errors import ConfigurationError
from flowdiff.testing import oracles
from flowdiff.testing.models import ScoreOf, model_of

DIM, SIGMA_Y = 6, 0.2
SIGMA = torch.tensor([1e-3, 0.05, 0.5, 3.0, 80.0], dtype=torch.float64)
STEERING = [name for name in registry.names("posterior") if name not in ("none", "hmc", "mala")]


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def covariance():
    root = normal(DIM, DIM, seed=3)
    return root @ root.T / DIM + 0.1 * torch.eye(DIM, dtype=torch.float64)


COLOURED = oracles.Gaussian(normal(DIM, seed=4), covariance())
WHITE = oracles.Gaussian(torch.zeros(DIM), 0.7**2 * torch.eye(DIM, dtype=torch.float64))
A = registry.create("measurement", "compressed", shape=(DIM,), share=0.5, sigma_y=SIGMA_Y)
Y = normal(1, 3, seed=5)


def made(name, **settings):
    return registry.create("posterior", name, measurement=A, sigma_data=0.7, **settings)


def posterior(oracle, y=Y):
    """p(x0|y) of a Gaussian prior, in closed form."""
    rows, S = A.rows, oracle.covariance
    gain = S @ rows.T @ torch.linalg.inv(rows @ S @ rows.T + SIGMA_Y**2 * torch.eye(len(rows), dtype=torch.float64))
    return oracles.Gaussian(oracle.mean + gain @ (y[0] - rows @ oracle.mean), S - gain @ rows @ S)


def test_mmps_is_the_posterior_of_any_gaussian_at_every_level():
    """Three iterations solve a system of three unknowns."""
    x = 0.5 + (0.5 + SIGMA[:, None]) * normal(len(SIGMA), DIM)
    exact = posterior(COLOURED)(x, SIGMA)
    found = Steered(model_of(COLOURED.network), made("mmps", iterations=3), Y)(x, SIGMA)
    torch.testing.assert_close(found, exact, rtol=1e-7, atol=1e-9)


def test_pigdm_is_the_posterior_of_a_white_gaussian_at_every_level():
    x = (0.5 + SIGMA[:, None]) * normal(len(SIGMA), DIM)
    for oracle, same in ((WHITE, True), (COLOURED, False)):
        found, exact = Steered(model_of(oracle.network), made("pigdm"), Y)(x, SIGMA), posterior(oracle)(x, SIGMA)
        assert torch.allclose(found, exact, rtol=1e-8, atol=1e-10) == same


@pytest.mark.parametrize("name", ["dps", "pigdm", "mmps"])
def test_a_raw_network_is_steered_as_the_density_that_it_is_the_score_of(name):
    x = (0.5 + SIGMA[:, None]) * normal(len(SIGMA), DIM)
    density, raw = model_of(COLOURED.network), model_of(ScoreOf(COLOURED.network))
    with torch.no_grad():  # as in a sampler
        torch.testing.assert_close(Steered(raw, made(name), Y)(x, SIGMA), Steered(density, made(name), Y)(x, SIGMA))


def test_dps_goes_down_the_gradient_of_the_misfit():
    x = normal(2, DIM).requires_grad_(True)
    sigma = torch.tensor([0.3, 2.0], dtype=torch.float64)
    D = COLOURED(x, sigma)
    (gradient,) = torch.autograd.grad((Y - A(D)).norm(dim=1).sum(), x)
    expected = (D - 0.7 * sigma[:, None] * gradient).detach()
    torch.testing.assert_close(Steered(model_of(COLOURED.network), made("dps", scale=0.7), Y)(x, sigma), expected)


@pytest.mark.parametrize("name", ["replacement", "repaint"])
def test_replacement_puts_the_measurement_into_D(name):
    """Without noise A·D_y = y; with noise less of it, the smaller σ is."""
    exact = registry.create("measurement", "compressed", shape=(DIM,), share=0.5, sigma_y=0.0)
    x = normal(len(SIGMA), DIM)
    method = registry.create("posterior", name, measurement=exact)
    found = Steered(model_of(COLOURED.network), method, Y)(x, SIGMA)
    torch.testing.assert_close(exact(found), Y.expand(len(SIGMA), -1))
    left = (Y - A(Steered(model_of(COLOURED.network), made(name), Y)(x, SIGMA))).norm(dim=1)
    before = (Y - A(COLOURED(x, SIGMA))).norm(dim=1)
    share = (SIGMA_Y / SIGMA) ** 2
    torch.testing.assert_close(left / before, share / (1 + share))


@pytest.mark.parametrize("name", STEERING)
def test_rows_of_a_batch_may_have_their_own_measurements(name):
    x, y = normal(len(SIGMA), DIM), normal(len(SIGMA), 3, seed=7)
    model, method = model_of(COLOURED.network), made(name)
    together = Steered(model, method, y)(x, SIGMA)
    for i in range(len(SIGMA)):
        alone = Steered(model, method, y[i : i + 1])(x[i : i + 1], SIGMA[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-9, atol=1e-9)
    with pytest.raises(ConfigurationError, match="5 measurements were given for a batch of 3"):
        Steered(model, method, y)(x[:3], SIGMA[:3])


@pytest.mark.parametrize("name", STEERING)
def test_what_a_method_costs(name):
    for model in (model_of(COLOURED.network), model_of(ScoreOf(COLOURED.network))):
        steered = Steered(model, made(name, **({"iterations": 2} if name == "mmps" else {})), Y)
        steered(normal(4, DIM), SIGMA[:4])
        assert steered.evaluations == 4 * {"dps": 2, "pigdm": 2, "mmps": 4}.get(name, 1)


def test_samples_of_a_steered_denoiser_have_the_moments_of_the_posterior():
    exact, n = posterior(COLOURED), 2000
    sigmas = Karras(sigma_min=0.002, sigma_max=40.0, rho=7.0)(60)
    start = 40.0 * normal(n, DIM)
    steered = Steered(model_of(COLOURED.network), made("mmps", iterations=3), Y)
    x = Ancestral(num_steps=60, eta=1.0)(steered, start, sigmas, generator=torch.manual_seed(1))
    # 5 standard errors, and 3 % for the first-order steps
    spread = exact.covariance.diagonal().sqrt()
    assert ((x.mean(0) - exact.mean).abs() <= (5 / n**0.5 + 0.03) * spread).all()
    allowed = (5 * (2 / n) ** 0.5 + 0.03) * torch.outer(spread, spread)
    assert ((x.T.cov() - exact.covariance).abs() <= allowed).all()
