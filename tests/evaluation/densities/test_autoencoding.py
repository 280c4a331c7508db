"""The numbers of an autoencoder, on the one whose likelihood is known."""

import linear_gaussian
import pytest
import torch
from torch import nn

from flowdiff.data.encoded import in_model_space
from flowdiff.evaluation.denoising import denoising_loss
from flowdiff.evaluation.densities.autoencoding import image_bound, latent_statistics
from flowdiff.models.autoencoder.posterior import standard_normal
from flowdiff.models.first_stage.base import AutoencoderStage
from flowdiff.models.first_stage.identity import IdentityFirstStage
from flowdiff.models.networks.base import AutoencoderNetwork

N = 300


@pytest.fixture
def samples(points):
    """Data of the linear-Gaussian VAE's own law, float32 (N, 4), as the test split."""
    generator = torch.Generator().manual_seed(5)
    latent, noise = (torch.randn(N, d, generator=generator) for d in (2, 4))
    x = latent @ linear_gaussian.W.T + linear_gaussian.B + linear_gaussian.S * noise
    split = type(points.test)(x, torch.zeros(N, dtype=torch.long))
    return type(points)("linear", split, split, None, None)


class Alone(AutoencoderNetwork):
    """The VAE as the network of a model, and as the model."""

    is_density, is_autoencoder = False, True
    first_stage = IdentityFirstStage((4,))
    forward = from_prior = None

    def __init__(self):
        super().__init__()
        self.autoencoder = linear_gaussian.vae().float()
        self.autoencoder.encoder.float()
        self.register_buffer("sigma_data", torch.ones(()))

    @property
    def network(self):
        return self


class Behind(nn.Module):
    """The true density of the VAE's latents, and its first stage."""

    is_density, is_autoencoder = True, False

    def __init__(self):
        super().__init__()
        self.first_stage = AutoencoderStage(
            linear_gaussian.vae(), scale="none", chunk_size=7, precision="float32", cache_dir="unused"
        )
        self.first_stage.shift.copy_(torch.tensor([0.3, -1.0]))
        self.first_stage.scale.copy_(torch.tensor([2.0, 0.1]))
        self.register_buffer("sigma_data", torch.ones(()))
        self.autoencoder, self.network = self.first_stage, object()

    def log_prob(self, z, sigma, cond=None):
        return standard_normal(self.first_stage.latent(z)) - self.first_stage.log_volume


@pytest.fixture(autouse=True)
def in_single_precision(monkeypatch):
    """The oracle's encoder computes with float64 constants."""
    monkeypatch.setattr(linear_gaussian, "W", linear_gaussian.W.float())
    monkeypatch.setattr(linear_gaussian, "B", linear_gaussian.B.float())


@pytest.mark.parametrize("model", [Alone, Behind])
def test_the_bound_of_the_true_posterior_and_prior_is_exact(model, samples):
    found = image_bound(model(), samples, 0.002, lambda label: None, seed=0, batch_size=100)
    covariance = (linear_gaussian.W @ linear_gaussian.W.T + linear_gaussian.S**2 * torch.eye(4)).double()
    exact = torch.distributions.MultivariateNormal(linear_gaussian.B.double(), covariance)
    expected = -exact.log_prob(samples.test.x.double()).mean().item() / 4
    assert found.metric == "nats_per_dim_bound"
    assert found.n == N
    assert found.mean == pytest.approx(expected, abs=1e-5)  # float32


def test_the_test_loss_of_an_autoencoder_is_its_bound(samples):
    loss, error = denoising_loss(Alone(), samples, lambda label: None, seed=0, batch_size=100, num_levels=2)
    bound = image_bound(Alone(), samples, 0.002, lambda label: None, seed=0, batch_size=100)
    assert loss == pytest.approx(bound.mean, abs=4 * error)


def test_statistics_of_latents(samples):
    vae = Alone().autoencoder
    found, seen = latent_statistics(vae, samples, 100)
    x = samples.test.x
    q = vae.posterior(x)
    assert found["latent_dims"] == 2
    assert found["active_units"] == 2
    assert found["kl"] == pytest.approx(q.kl().sum(1).mean().item(), rel=1e-5)
    error = x - vae.decode(q.mean)
    torch.testing.assert_close(seen, vae.decode(q.mean), atol=1e-6, rtol=1e-6)  # batches of 100
    assert found["reconstruction_mse"] == pytest.approx(error.square().mean().item(), rel=1e-5)


def test_a_unit_that_says_nothing_is_not_active(samples):
    vae = Alone().autoencoder
    told = vae.encoder
    vae.encoder = nn.Sequential(told, Silent())
    assert latent_statistics(vae, samples, 100)[0]["active_units"] == 1


class Silent(nn.Module):
    """The second unit's mean is 0.05·x's own, variance 0.0025: below what counts."""

    def forward(self, moments):
        return moments * torch.tensor([1.0, 0.05, 1.0, 1.0])


def test_data_behind_a_first_stage_are_latents(samples):
    model = Behind()
    seen = in_model_space(model, samples)
    assert (seen.shape, seen.levels) == ((2,), None)
    assert in_model_space(Alone(), samples) is samples
