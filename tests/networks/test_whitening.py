"""Whitening: exact inverse and log-determinant, statistics equal to the data's, and the Wiener filter behind it."""

import pytest
import torch
from oracles import Gaussian

from flowdiff import registry
from flowdiff.errors import ConfigurationError

NAMES = registry.names("whitening")


def data(n=400, dim=6):
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return torch.randn(n, dim, generator=generator, dtype=torch.float64) @ mix + 1.5


def fitted(name, x):
    whitening = registry.build("whitening", name, shape=tuple(x.shape[1:])).double()
    whitening.fit(x.split(64))
    return whitening


@pytest.mark.parametrize("name", NAMES)
def test_round_trip_and_log_determinant(name):
    x = data()
    whitening = fitted(name, x)
    sigma = torch.tensor([0.002, 0.5, 80.0], dtype=torch.float64)
    y, logdet = whitening(x[:3], sigma)
    back, logdet_back = whitening.inverse(y, sigma)
    assert torch.allclose(back, x[:3], atol=1e-8)  # σ = 0.002 spreads the scales over 1e4
    assert torch.allclose(logdet, -logdet_back)
    for i in range(3):
        J = torch.autograd.functional.jacobian(lambda v, i=i: whitening(v[None], sigma[i : i + 1])[0][0], x[i])
        assert torch.allclose(torch.linalg.slogdet(J).logabsdet, logdet[i], atol=1e-8)


def test_zca_whitens_noised_data_at_every_sigma():
    x = data(20000)
    whitening = fitted("zca", x)
    noised = x + 0.7 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    y, _ = whitening(noised, torch.full((len(x),), 0.7, dtype=x.dtype))
    # 20,000 samples: a covariance entry has standard error 1/√20000 = 0.007.
    assert (y.T.cov() - torch.eye(6)).abs().max() < 0.04
    assert y.mean(0).abs().max() < 0.04


@pytest.mark.parametrize("name", ["zca"])
def test_statistics_do_not_depend_on_the_batches(name):
    x = data(300)
    one, many = fitted(name, x), registry.build("whitening", name, shape=(6,)).double()
    many.fit(x.split(7))
    assert torch.allclose(one.mean, many.mean)
    assert torch.allclose(one.eigenvalues, many.eigenvalues)


def test_isotropic_measures_the_root_mean_square():
    x = data()
    assert torch.allclose(fitted("isotropic", x).variance, x.square().mean())


def test_constant_dimensions_do_not_break_zca():
    x = data()
    x[:, 2] = 0.3
    whitening = fitted("zca", x)
    y, logdet = whitening(x[:4], torch.full((4,), 0.002, dtype=x.dtype))
    assert torch.isfinite(y).all()
    assert torch.isfinite(logdet).all()


def test_zca_of_a_large_image_is_refused():
    with pytest.raises(ConfigurationError, match=r"16,384×16,384 matrix \(1.0 GiB\).*take whitening=isotropic"):
        registry.build("whitening", "zca", shape=(4, 64, 64))


def test_identity_flow_behind_zca_is_the_wiener_filter():
    x = data()
    network = score_flow("zca", x)
    wiener = Gaussian(x.mean(0), torch.cov(x.T, correction=0))
    sigma = torch.full((5,), 0.8, dtype=torch.float64)
    noised = x[:5] + 0.8
    assert torch.allclose(network(noised, sigma), wiener.score(noised, sigma), atol=1e-9)
    assert torch.allclose(network.log_prob(noised, sigma), wiener.log_prob(noised, sigma), atol=1e-9)


def test_identity_flow_behind_isotropic_is_c_skip():
    x = data()
    network = score_flow("isotropic", x)
    sigma = torch.full((5,), 0.8, dtype=torch.float64)
    D = x[:5] + 0.64 * network(x[:5], sigma)
    variance = x.square().mean()
    assert torch.allclose(D, variance / (variance + 0.64) * x[:5])


def score_flow(whitening, x):
    activation = registry.build("activation", "softplus")
    shape = tuple(x.shape[1:])
    flow = registry.build("flow", "linear_activation", shape=shape, embed_dim=64, activation=activation)
    network = registry.build(
        "network", "score_flow", flow=flow, whitening=fitted(whitening, x), shape=shape, cond_dim=0, embed_dim=64
    )
    return network.double().eval()
