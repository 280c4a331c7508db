"""A flow trained together with the autoencoder of its latents: start, checkpoint, weight average, resume, load."""

import copy
import signal
from functools import cache

import pytest
import runs
import torch

from flowdiff import api, config
from flowdiff.errors import ConfigurationError
from flowdiff.evaluation.densities.autoencoding import image_bound
from flowdiff.runs import identity
from flowdiff.runs.job import Interrupted
from flowdiff.runs.run_folder import RunFolder
from flowdiff.training import assembly
from flowdiff.training.assembly import load_parts
from flowdiff.training.engine import Engine

TINY_VAE = ["experiment=vae_digits", "network.channels=[4,8]", "network.norm_groups=2", "network.latent_dim=3"]
FLOW = [*runs.TINY_DIGITS, "flow.n_flows=1", "network.embed_dim=8", "metrics.likelihood=true"]
ONLY = ["metrics.classify=false", "metrics.outliers=false", "metrics.interpolate=false", "metrics.sigmas_per_sample=1"]
BEHIND = [*FLOW, *ONLY, "first_stage=vae", "first_stage.run=a_vae"]
JOINT = [*BEHIND, "first_stage.train=true", "trainer.log_every_n_steps=1"]
CURVES = {"train_latent_loss", "train_elbo", "train_reconstruction", "train_kl", "val_loss"}


@cache
def untrained():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return api.build(*TINY_VAE).denoiser.eval().requires_grad_(False)


def vae_of(run):
    """The loaded model of the VAE's run: a new copy with the same weights at every call."""
    return copy.deepcopy(untrained())


@pytest.fixture(scope="module", autouse=True)
def _a_vae():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "load", vae_of)
        yield


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
    """The folder and the result of a run that trains flow and autoencoder together."""
    folder = tmp_path_factory.mktemp("joint")
    return RunFolder(folder), runs.train(folder, *JOINT)


def begun(*overrides):
    torch.manual_seed(0)
    engine = Engine.of(runs.settings(*overrides))
    engine.measure()
    return engine


def bound(denoiser, data):
    sigma = denoiser.sampling.schedule.sigma_min
    return image_bound(denoiser, data, sigma, seed=0, batch_size=250).mean


def test_it_starts_from_the_same_values_as_with_a_frozen_autoencoder(tmp_path):
    frozen = begun(*BEHIND, f"first_stage.cache_dir={tmp_path}")
    joint = begun(*JOINT, f"first_stage.cache_dir={tmp_path / 'nothing'}")
    assert frozen.denoiser.data_range.known
    assert not joint.denoiser.data_range.known  # latents leave their first range while the autoencoder is trained
    for name in frozen.denoiser.state_dict().keys() - {"data_range.low", "data_range.high"}:
        value = frozen.denoiser.state_dict()[name]
        torch.testing.assert_close(joint.denoiser.state_dict()[name], value, rtol=1e-5, atol=1e-6, msg=name)
    expected = bound(frozen.denoiser, frozen.data)
    assert bound(joint.denoiser, joint.data) == pytest.approx(expected, rel=1e-6)
    more = sum(p.numel() for p in joint.denoiser.first_stage.autoencoder.parameters())
    assert joint.num_parameters == frozen.num_parameters + more
    assert not (tmp_path / "nothing").exists()  # latents of a trained autoencoder are not cached
    assert identity.run_id(runs.settings(*BEHIND)) != identity.run_id(runs.settings(*JOINT))


def test_the_autoencoder_is_trained_saved_averaged_and_counted(joint):
    folder, result = joint
    saved = torch.load(folder.checkpoint, weights_only=True)
    start = vae_of("a_vae").network.autoencoder.state_dict()
    for name, before in start.items():
        average, last = (
            saved[of][f"denoiser.first_stage.held.module.{name}"] for of in ("state_dict", "current_model_state")
        )
        assert not torch.equal(average, before), name
        assert not torch.equal(average, last), name
    header = folder.metrics.read_text().splitlines()[0].split(",")
    assert set(header) >= CURVES
    assert result["parameters"] > sum(value.numel() for value in start.values())


def test_the_loaded_model_has_the_trained_autoencoder(joint):
    folder, result = joint
    parts = load_parts(folder.path)
    start = vae_of("a_vae").network.autoencoder.state_dict()
    found = parts.denoiser.first_stage.autoencoder.state_dict()
    assert not any(torch.equal(found[name], value) for name, value in start.items())
    parts.data.setup()
    assert bound(parts.denoiser, parts.data) == pytest.approx(result["metrics"]["bpd_bound"], rel=1e-6)
    assert parts.denoiser.sample(3, start="flow").shape == (3, 1, 8, 8)


def test_an_interrupted_run_resumes_exactly(joint, tmp_path, at_step, monkeypatch):
    with monkeypatch.context() as patch:
        at_step(1, runs.send(signal.SIGTERM), patch)
        with pytest.raises(Interrupted):
            runs.train(tmp_path / "run", *JOINT)
    result = runs.train(tmp_path / "run", *JOINT)
    whole, halved = (torch.load(f.checkpoint, weights_only=True) for f in (joint[0], RunFolder(tmp_path / "run")))
    for kind in ("state_dict", "current_model_state"):
        for name, value in whole[kind].items():
            assert torch.equal(value, halved[kind][name]), name
    assert result["metrics"]["bpd_bound"] == joint[1]["metrics"]["bpd_bound"]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["network=unet", "scaling=edm"], "first_stage.train=true network=unet do not go together"),
        (["first_stage.precision=bfloat16"], "does not work with first_stage.precision=bfloat16"),
    ],
)
def test_unsuitable_settings_are_refused_in_one_sentence(overrides, sentence):
    with pytest.raises(ConfigurationError) as error:
        Engine.of(runs.settings("first_stage=vae", "first_stage.run=a_vae", "first_stage.train=true", *overrides))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigurationError, match=r"first_stage\.train is not a setting of first_stage"):
        config.compose(["first_stage=autoencoder_kl", "first_stage.train=true"])  # a pretrained one is not trained
