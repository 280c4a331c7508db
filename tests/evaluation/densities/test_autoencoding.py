"""The numbers of an autoencoder, for the VAE whose likelihood is known."""

import linear_gaussian
import pytest
import torch
from gaussian_flow import GaussianFlow

from flowdiff.data.encoded import in_model_space
from flowdiff.evaluation.denoising import denoising_loss
from flowdiff.evaluation.densities.autoencoding import image_bound, latent_statistics
from flowdiff.models.autoencoder.posterior import standard_normal
from flowdiff.models.first_stage.base import AutoencoderStage
from flowdiff.models.networks.base import AutoencoderNetwork
from flowdiff.testing.models import model_of

N = 300


@pytest.fixture
def samples(points):
    """Samples of the linear-Gaussian VAE, float32 (N, 4), as the test split."""
    generator = torch.Generator().manual_seed(5)
    latent, noise = (torch.randn(N, d, generator=generator) for d in (2, 4))
    x = latent @ linear_gaussian.W.T + linear_gaussian.B + linear_gaussian.S * noise
    split = type(points.test)(x, torch.zeros(N, dtype=torch.long))
    return type(points)("linear", split, split, None, None)


class VAENetwork(AutoencoderNetwork):
    """The VAE as the network of a model."""

    def __init__(self):
        super().__init__()
        self.autoencoder = linear_gaussian.vae().float()
        self.autoencoder.encoder.float()

    def forward(self, x, c_noise, cond=None):
        raise NotImplementedError("an autoencoder does not denoise")

    def from_prior(self, n, generator=None):
        raise NotImplementedError("no test samples from it")


class LatentDensity(GaussianFlow):
    """The true density of a stage's latents."""

    def __init__(self, stage):
        super().__init__()
        self.stage = stage

    def log_prob(self, z, sigma, cond=None):
        return standard_normal(self.stage.latent(z)) - self.stage.log_volume


def vae_model():
    """A model whose network is the VAE."""
    return model_of(VAENetwork(), shape=(4,))


def latent_model():
    """A density of the latents of the VAE."""
    stage = AutoencoderStage(linear_gaussian.vae(), scale="none", chunk_size=7, precision="float32", cache_dir="unused")
    stage.shift.copy_(torch.tensor([0.3, -1.0]))
    stage.scale.copy_(torch.tensor([2.0, 0.1]))
    return model_of(LatentDensity(stage), first_stage=stage)


@pytest.fixture(autouse=True)
def in_single_precision(monkeypatch):
    """The oracle's encoder computes with float64 constants."""
    monkeypatch.setattr(linear_gaussian, "W", linear_gaussian.W.float())
    monkeypatch.setattr(linear_gaussian, "B", linear_gaussian.B.float())


@pytest.mark.parametrize("model", [vae_model, latent_model])
def test_the_bound_of_the_true_posterior_and_prior_is_exact(model, samples):
    """It is the test loss of an autoencoder; the data of a latent model are latents."""
    built = model()
    found = image_bound(built, samples, 0.002, seed=0, batch_size=100)
    covariance = (linear_gaussian.W @ linear_gaussian.W.T + linear_gaussian.S**2 * torch.eye(4)).double()
    exact = torch.distributions.MultivariateNormal(linear_gaussian.B.double(), covariance)
    expected = -exact.log_prob(samples.test.x.double()).mean().item() / 4
    assert found.metric == "nats_per_dim_bound"
    assert found.n == N
    assert found.mean == pytest.approx(expected, abs=1e-5)  # float32
    seen = in_model_space(built, samples)
    if model is vae_model:
        assert seen is samples
        loss, error = denoising_loss(built, samples, seed=0, batch_size=100, num_levels=2)
        assert loss == pytest.approx(found.mean, abs=4 * error)
    else:
        assert (seen.shape, seen.levels) == ((2,), None)


def test_statistics_of_latents(samples):
    vae = vae_model().autoencoder
    found, seen = latent_statistics(vae, samples, 100)
    x = samples.test.x
    q = vae.posterior(x)
    assert found["latent_dims"] == 2
    assert found["active_units"] == 2
    assert found["kl"] == pytest.approx(q.kl().sum(1).mean().item(), rel=1e-5)
    error = x - vae.decode(q.mean)
    torch.testing.assert_close(seen, vae.decode(q.mean), atol=1e-6, rtol=1e-6)  # batches of 100
    assert found["reconstruction_mse"] == pytest.approx(error.square().mean().item(), rel=1e-5)
    # The second unit's mean times 0.05: its variance, about 0.0025, is below the threshold of an active unit.
    vae.encoder.register_forward_hook(lambda _module, _args, moments: moments * torch.tensor([1.0, 0.05, 1.0, 1.0]))
    assert latent_statistics(vae, samples, 100)[0]["active_units"] == 1
