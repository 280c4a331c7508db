"""Whitening: exact inverse and log-determinant, statistics of the data, and the Wiener filter with an identity flow."""

import pytest
import scipy.fft
import torch
from small_models import flow_of, normal, score_flow_of

from flowdiff import registry
from flowdiff.errors import ConfigurationError
from flowdiff.models.networks.whitening import cosine_basis
from flowdiff.shapes import append_dims
from flowdiff.testing.densities import jacobians
from flowdiff.testing.oracles import Gaussian

NAMES = registry.names("whitening")


def data(n=400, dim=6):
    mix, z = normal((dim, dim), (n, dim), seed=0)
    return z @ mix + 1.5


def fitted(name, x, **settings):
    whitening = registry.create("whitening", name, shape=tuple(x.shape[1:]), **settings).double()
    whitening.fit(x.split(64))
    return whitening


def test_zca_whitens_noised_data_at_every_sigma():
    x = data(20000)
    whitening = fitted("zca", x)
    noised = x + 0.7 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    y, _ = whitening(noised, torch.full((len(x),), 0.7, dtype=x.dtype))
    # 20,000 samples: a covariance entry has standard error 1/√20000 = 0.007.
    assert (y.T.cov() - torch.eye(6)).abs().max() < 0.04
    assert y.mean(0).abs().max() < 0.04


@pytest.mark.parametrize("name", NAMES)
def test_statistics_do_not_depend_on_the_batches(name):
    x = data(300)
    one, many = fitted(name, x), registry.create("whitening", name, shape=(6,)).double()
    many.fit(x.split(7))
    for a, b in zip(one.state_dict().values(), many.state_dict().values(), strict=True):
        assert torch.allclose(a.abs(), b.abs())  # the sign of an eigenvector is arbitrary


def images(n=4000, shape=(3, 5, 4)):
    """Gaussian images with a mean and correlated channels; their covariance is diagonal in the cosine basis."""
    generator = torch.Generator().manual_seed(2)
    spectrum = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.05
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    scale = torch.tensor([1.0, 0.2, 3.0], dtype=torch.float64)[:, None, None]
    a = torch.randn(n, *shape, generator=generator, dtype=torch.float64) * (spectrum * scale).sqrt()
    x = scipy.fft.idctn(torch.einsum("ij,bjhw->bihw", turn, a).numpy(), axes=(2, 3), norm="ortho")
    return torch.from_numpy(x) + torch.rand(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("name", "x"), [*((name, data()) for name in NAMES), ("dct", images(50))])
def test_round_trip_and_log_determinant(name, x):
    whitening, sigma = fitted(name, x), torch.tensor([0.002, 0.5, 80.0], dtype=torch.float64)
    y, logdet = whitening(x[:3], sigma)
    back, logdet_back = whitening.inverse(y, sigma)
    assert torch.allclose(back, x[:3], atol=1e-8)  # σ = 0.002 spreads the scales over 1e4
    assert torch.allclose(logdet, -logdet_back)
    J = jacobians(lambda v: whitening(v, sigma)[0], x[:3])
    assert torch.allclose(torch.linalg.slogdet(J).logabsdet, logdet, atol=1e-8)


@pytest.mark.parametrize(("name", "x"), [*((name, data()) for name in NAMES), ("dct", images(50))])
def test_a_gate_multiplies_y_and_leaves_the_log_determinant(name, x):
    whitening, sigma = fitted(name, x), torch.tensor([0.002, 0.5, 80.0], dtype=torch.float64)
    square = torch.tensor([0.9, 0.3, 1e-4], dtype=torch.float64)
    y, logdet = whitening(x[:3], sigma)
    gated, same = whitening(x[:3], sigma, square)
    torch.testing.assert_close(gated, y * append_dims(square.sqrt(), y.ndim))
    assert torch.equal(same, logdet)


def test_cosine_basis_is_the_orthonormal_dct():
    x = data(5, 7)
    expected = torch.from_numpy(scipy.fft.dct(x.numpy(), norm="ortho"))
    assert torch.allclose(x @ cosine_basis(7, torch.float64).T, expected, atol=1e-12)


def test_dct_equals_zca_if_the_covariance_is_diagonal_in_the_cosine_basis():
    x = images(200_000)
    sigma = torch.full((6,), 0.5, dtype=torch.float64)
    y, logdet = fitted("dct", x)(x[:6], sigma)
    y_zca, logdet_zca = fitted("zca", x)(x[:6], sigma)
    # zca measures 60² entries of the covariance from 200,000 samples, each to about 3·√(2/200,000) = 0.01.
    assert (y - y_zca).abs().max() < 0.05
    assert (logdet - logdet_zca).abs().max() < 0.05


def test_constant_dimensions_do_not_break_zca():
    x = data()
    x[:, 2] = 0.3
    whitening = fitted("zca", x)
    y, logdet = whitening(x[:4], torch.full((4,), 0.002, dtype=x.dtype))
    assert torch.isfinite(y).all()
    assert torch.isfinite(logdet).all()


def test_zca_of_a_large_image_is_refused():
    with pytest.raises(ConfigurationError, match=r"16,384×16,384 matrix \(1.0 GiB\).*set whitening=dct"):
        registry.create("whitening", "zca", shape=(4, 64, 64))


def test_isotropic_measures_mean_and_mean_variance_or_the_mean_square():
    x = data()
    centred, plain = fitted("isotropic", x), fitted("isotropic", x, center=False)
    torch.testing.assert_close(centred.mean, x.mean(0))
    torch.testing.assert_close(centred.variance, x.var(0, correction=0).mean())
    torch.testing.assert_close(plain.variance, x.square().mean())
    assert [*plain.state_dict()] == ["variance"]  # as in runs made before the mean was removed


def test_identity_flow_after_zca_is_the_wiener_filter_and_after_isotropic_c_skip():
    x, sigma = data(), torch.full((5,), 0.8, dtype=torch.float64)
    noised = x[:5] + 0.8
    zca, centred, plain = (
        score_flow_of(flow_of("linear_activation", (6,), 64, act="softplus"), (6,), whitening, embed_dim=64)
        .double()
        .eval()
        for whitening in (fitted("zca", x), fitted("isotropic", x), fitted("isotropic", x, center=False))
    )
    wiener = Gaussian(x.mean(0), torch.cov(x.T, correction=0))
    assert torch.allclose(zca(noised, sigma), wiener.score(noised, sigma), atol=1e-9)
    assert torch.allclose(zca.log_prob(noised, sigma), wiener.log_prob(noised, sigma), atol=1e-9)
    for model, mean, variance in ((centred, x.mean(0), x.var(0, correction=0).mean()), (plain, 0, x.square().mean())):
        c_skip = variance / (variance + 0.64)
        torch.testing.assert_close(noised + 0.64 * model(noised, sigma), mean + c_skip * (noised - mean))
