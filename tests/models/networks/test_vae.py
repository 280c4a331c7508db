"""The convolutional VAE as a network: shapes, samples of its prior, and the settings it refuses."""

import pytest
import torch
from small_models import small_vae

from flowdiff import registry
from flowdiff.diffusion.denoiser import Denoiser
from flowdiff.diffusion.losses.elbo import latent_noise
from flowdiff.errors import ConfigurationError
from flowdiff.models.autoencoder.decoder_laws import LAWS

SHAPE = (1, 8, 12)
X = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(
    ("settings", "latent"),
    [
        ({}, (5,)),
        ({"latent_dim": None, "latent_channels": 2}, (2, 4, 6)),
        ({"channels": [4], "latent_dim": None, "latent_channels": 1}, (1, 8, 12)),
        ({"channels": [4, 8, 8], "layers_per_block": 2}, (5,)),
        ({"patch": 2, "latent_dim": None, "latent_channels": 3}, (3, 2, 3)),
        ({"patch": 4, "channels": [4]}, (5,)),
    ],
)
def test_shapes(settings, latent):
    network = small_vae(SHAPE, **settings)
    q = network.autoencoder.posterior(X)
    assert q.mean.shape == q.log_variance.shape == (3, *latent)
    assert network.autoencoder.latent_shape == latent
    assert network.autoencoder.reconstruct(X).shape == (3, 1, 8, 12)
    assert network.from_prior(2).shape == (2, 1, 8, 12)


@pytest.mark.parametrize("reconstruction", LAWS)
def test_a_few_steps_of_elbo_lower_it(reconstruction):
    network = small_vae(SHAPE, reconstruction=reconstruction)
    denoiser = Denoiser(network, registry.create("scaling", "score"))
    loss = registry.create("loss", "elbo", warmup_steps=0)
    noise = torch.randn(3, 1, 8, 12)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    values = []
    for _ in range(15):
        out = loss(denoiser, X, torch.ones(3), noise)
        optimizer.zero_grad()
        out.loss.mean().backward()
        optimizer.step()
        values.append(out.loss.mean().item())
    assert values[-1] < values[0]
    assert all(p.grad is not None for p in network.parameters())  # DDP hangs on parameters without a gradient


def test_its_denoiser_is_the_reconstruction_at_any_sigma():
    network = small_vae(SHAPE)
    denoiser = Denoiser(network, registry.create("scaling", "score"))
    D = denoiser(X, torch.tensor([0.01, 1.0, 50.0]))
    # float32 rounds in the products with 1/σ² and σ²
    torch.testing.assert_close(D, network.autoencoder.reconstruct(X), atol=1e-4, rtol=1e-4)


def test_latent_noise_is_the_first_numbers_of_the_noise():
    noise = torch.arange(24.0).view(2, 3, 2, 2)
    assert latent_noise(noise, (5,)).tolist() == [list(range(5)), list(range(12, 17))]
    assert latent_noise(noise, (1, 2, 2)).shape == (2, 1, 2, 2)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"shape": (2,)}, "which are not images (C, H, W)"),
        ({"shape": (1, 6, 9)}, "needs images whose sides are multiples of 2, not 6×9"),
        ({"patch": 3}, "network.patch=3 and 2 levels needs images whose sides are multiples of 6, not 8×12"),
        ({"norm_groups": 3}, "network.channels=[4, 8] cannot be split into network.norm_groups=3 groups"),
        ({"latent_channels": 2}, "does not describe one latent: set latent_dim for a vector or latent_channels"),
        ({"latent_dim": None}, "does not describe one latent"),
        ({"latent_dim": 97}, "a latent of 97 dimensions is larger than an image of 96"),
    ],
)
def test_unsuitable_settings_are_refused_in_one_sentence(settings, sentence):
    with pytest.raises(ConfigurationError) as error:
        small_vae(**{"shape": SHAPE, **settings})
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
