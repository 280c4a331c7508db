"""The first stage autoencoder_kl, with a tiny AutoencoderKL of random weights instead of a pretrained one."""

import pytest
import torch

from flowdiff import registry
from flowdiff.errors import ConfigurationError, RunError

SHAPE = (1, 8, 8)


def save(folder, **config):
    """Save an AutoencoderKL for images (1, 8, 8) with latents (2, 4, 4), and return it."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    given = {"block_out_channels": [4, 8], "latent_channels": 2, "norm_num_groups": 2, "scaling_factor": 0.5, **config}
    given["down_block_types"] = ["DownEncoderBlock2D"] * len(given["block_out_channels"])
    given["up_block_types"] = ["UpDecoderBlock2D"] * len(given["block_out_channels"])
    vae = AutoencoderKL(in_channels=1, out_channels=1, sample_size=8, **given)
    vae.save_pretrained(folder)
    return vae.eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kl")
    return folder, save(folder, shift_factor=0.25)


def stage(model, **settings):
    return registry.create("first_stage", "autoencoder_kl", shape=SHAPE, model=str(model), **settings)


X = torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(1)) * 2 - 1


@torch.no_grad()
def test_it_encodes_and_decodes_like_diffusers_with_the_factors_of_the_model(saved):
    folder, vae = saved
    first_stage = stage(folder, chunk_size=2)
    assert first_stage.latent_shape == (2, 4, 4)
    posterior = first_stage.posterior(X)
    expected = vae.encode(X).latent_dist
    torch.testing.assert_close(posterior.mean, expected.mean, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(posterior.log_variance, expected.logvar, atol=1e-5, rtol=1e-4)
    z = first_stage.scaled(posterior.mean)
    torch.testing.assert_close(z, (expected.mean - 0.25) * 0.5, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(first_stage.decode(z), vae.decode(expected.mean).sample, atol=1e-5, rtol=1e-4)


def test_half_precision_tiling_and_the_folder_of_a_pipeline(saved, tmp_path):
    half, first_stage = stage(saved[0], precision="bfloat16", tiled=True), stage(saved[0])
    assert half.autoencoder.vae.use_tiling
    assert not first_stage.autoencoder.vae.use_tiling
    assert half.decode(torch.zeros(1, 2, 4, 4)).dtype == torch.float32
    (tmp_path / "vae").symlink_to(saved[0])
    assert stage(tmp_path).key() == first_stage.key()


@torch.no_grad()
def test_the_scale_of_its_errors_is_measured(saved):
    first_stage = stage(saved[0])
    first_stage.fit([], X)
    error = X - first_stage.decode(first_stage.encode(X, torch.Generator().manual_seed(0)))
    latent = first_stage.latent(first_stage.encode(X, torch.Generator().manual_seed(0)))
    expected = torch.distributions.Normal(0, error.square().mean().sqrt()).log_prob(error).flatten(1).sum(1)
    torch.testing.assert_close(first_stage.log_likelihood(X, latent), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((3, 8, 8), "encodes images of 1 channels, and samples of the dataset have shape 3×8×8: take"),
        ((2,), "encodes images of 1 channels, and samples of the dataset have shape 2: take"),
        ((1, 9, 8), "needs images whose sides are multiples of 2, not 9×8: resize them"),
    ],
)
def test_unsuitable_images_are_refused(saved, shape, sentence):
    with pytest.raises(ConfigurationError) as error:
        registry.create("first_stage", "autoencoder_kl", shape=shape, model=str(saved[0]))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_model_is_reported_in_one_sentence(tmp_path):
    with pytest.raises(ConfigurationError, match=r"needs first_stage\.model: a folder with config\.json"):
        registry.create("first_stage", "autoencoder_kl", shape=SHAPE)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(RunError) as error:
        stage(tmp_path)
    assert f"first_stage.model={tmp_path} cannot be read (" in str(error.value)
    assert "\n" not in str(error.value)
