"""The oracles are consistent: score and denoiser follow from the density, and samples have the right moments."""

import pytest
import torch

from flowdiff.testing.oracles import Gaussian, Mixture, two_by_two


def gaussian():
    root = torch.tensor([[0.6, 0.0, 0.0], [0.3, 0.2, 0.0], [-0.1, 0.4, 0.05]], dtype=torch.float64)
    return Gaussian(torch.tensor([0.3, -0.2, 0.1]), root @ root.T)


def image_mixture():
    generator = torch.Generator().manual_seed(3)
    means = torch.randn(3, 1, 2, 2, generator=generator, dtype=torch.float64)
    return Mixture(means, torch.tensor([0.2, 0.5, 0.1]))


ORACLES = {"gaussian": (gaussian, (3,)), "plane": (two_by_two, (2,)), "images": (image_mixture, (1, 2, 2))}


@pytest.fixture(params=ORACLES)
def case(request):
    make, shape = ORACLES[request.param]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, *shape, generator=generator, dtype=torch.float64)
    sigma = torch.tensor([0.01, 0.1, 0.5, 1.0, 5.0, 80.0], dtype=torch.float64)
    return make(), x, sigma


def test_score_is_the_gradient_of_log_prob(case):
    oracle, x, sigma = case
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(oracle.log_prob(x, sigma).sum(), x)
    torch.testing.assert_close(oracle.score(x, sigma), gradient, rtol=1e-9, atol=1e-12)


def test_denoiser_obeys_tweedie(case):
    oracle, x, sigma = case
    variance = sigma.reshape(-1, *[1] * (x.ndim - 1)) ** 2
    torch.testing.assert_close(oracle(x, sigma), x + variance * oracle.score(x, sigma), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["gaussian", "plane", "images"])
def test_samples_have_the_moments(name):
    oracle = ORACLES[name][0]()
    n = 20_000
    sigma = torch.full((n,), 0.3, dtype=torch.float64)
    x = oracle.sample(sigma, generator=torch.Generator().manual_seed(1)).flatten(1)
    covariance = oracle.covariance + 0.09 * torch.eye(x.shape[1], dtype=torch.float64)
    spread = covariance.diagonal().sqrt()
    # 5 standard errors: std/√n for a mean, at most √2·s_i·s_j/√n for a covariance of normal numbers
    assert ((x.mean(0) - oracle.mean).abs() < 5 * spread / n**0.5).all()
    assert ((x.T.cov() - covariance).abs() < 5 * (2 / n) ** 0.5 * torch.outer(spread, spread)).all()


def test_density_integrates_to_one():
    axis = torch.linspace(-5, 5, 201, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    density = two_by_two().log_prob(grid, torch.full((len(grid),), 0.2, dtype=torch.float64)).exp()
    assert density.sum().item() * 0.05**2 == pytest.approx(1, abs=1e-6)  # the trapezoid rule is spectrally exact


def test_condition_selects_components():
    mixture = two_by_two()
    x = torch.zeros(4, 2, dtype=torch.float64)
    sigma = torch.full((4,), 0.5, dtype=torch.float64)
    k = torch.arange(4)
    share = (mixture.stds**2 / (mixture.stds**2 + 0.25))[:, None]
    torch.testing.assert_close(mixture(x, sigma, mixture.classes(k)), (1 - share) * mixture.means)
    torch.testing.assert_close(mixture(x, sigma, mixture.null(4)), mixture(x, sigma))
