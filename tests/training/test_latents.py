"""From an autoencoder's training to samples of a model behind it, the whole way."""

import pytest
import runs
import torch
from cli_process import outcomes

import flowdiff
from flowdiff import config
from flowdiff.errors import ConfigurationError, RunError
from flowdiff.runs import identity
from flowdiff.training.assembly import guide_by
from flowdiff.training.engine import Engine

VAE = [*runs.without_flow(runs.TINY_DIGITS), "experiment=vae_digits", "network.channels=[4,8]", "network.norm_groups=2"]
TINY_VAE = [*VAE, "network.latent_dim=3", "metrics.likelihood=true", "trainer.log_every_n_steps=1"]
BEHIND = [*runs.TINY_DIGITS, "flow.n_flows=1", "network.embed_dim=8", "first_stage=vae"]


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """A run of an autoencoder, and what came out."""
    folder = tmp_path_factory.mktemp("vae")
    return folder, runs.train(folder, *TINY_VAE)


@pytest.fixture(scope="module")
def behind(vae, tmp_path_factory):
    """A run on the latents of that."""
    folder = tmp_path_factory.mktemp("behind")
    first_stage = [f"first_stage.run={vae[0]}", f"first_stage.cache_dir={folder / 'cache'}"]
    more = ["metrics.likelihood=true", "metrics.classify=false", "metrics.outliers=false"]
    return folder, runs.train(folder, *BEHIND, *first_stage, *more)


@pytest.mark.slow
def test_an_autoencoder_is_a_run_like_any_other_and_is_sampled_from_its_prior(vae):
    folder, result = vae
    numbers = {"test_loss", "test_loss_se", "bpd_bound", "bpd_bound_se"}
    assert set(result["metrics"]) == numbers | {"reconstruction_mse", "kl", "active_units", "latent_dims"}
    for name in ("samples", "reconstructions", "interpolation", "loss_curve"):
        assert (folder / f"{name}.png").is_file()
    assert not (folder / "trajectory.png").exists()
    assert not (folder / "denoising.png").exists()  # it has no D
    assert not (folder / "health.json").exists()
    header = (folder / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train_kl", "train_reconstruction", "val_loss"} <= set(header)
    model = flowdiff.load(folder)
    samples = model.sample(5, seed=3)
    assert samples.shape == (5, 1, 8, 8)
    torch.testing.assert_close(model.sample(5, seed=3, batch_size=2), samples, atol=1e-5, rtol=1e-5)
    given = [f"run={folder}", "num_samples=6", "device=cpu"]
    results = outcomes("sample", [[*given, f"out={folder / 'drawn'}"], [*given, "start=flow"]], folder)
    assert [status for status, _ in results] == [0, 2]
    assert (folder / "drawn" / "samples.png").is_file()
    assert "start=flow makes no sense for an autoencoder" in results[1][1]


@pytest.mark.slow
def test_a_model_of_latents_says_what_is_of_latents_and_what_of_images(vae, behind):
    folder, result = behind
    assert {"latent_nats_per_dim", "bpd_bound", "reconstruction_mse"} <= set(result["metrics"])
    assert not {"bpd", "nats_per_dim"} & set(result["metrics"])  # no density of images is exact here
    assert result["metrics"]["reconstruction_mse"] == pytest.approx(vae[1]["metrics"]["reconstruction_mse"], rel=1e-4)
    pictures = ("samples", "trajectory", "reconstructions", "interpolation")
    assert all((folder / f"{name}.png").is_file() for name in pictures)
    model = flowdiff.load(folder)
    assert model.first_stage.latent_shape == (3,)
    assert model.sample(4, start="flow").shape == (4, 1, 8, 8)
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    of_first_stage = {name.rpartition("first_stage.")[2] for name in saved if "first_stage" in name}
    assert of_first_stage == {"shift", "scale", "law.log_scale"}
    assert float(model.sigma_data) == pytest.approx(1, abs=0.1)  # latents of 1,500 images are scaled to it


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Overrides that put a tiny AutoencoderKL of random weights, read from its folder, before a model of the digits."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pretrained")
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    channels = {"in_channels": 1, "out_channels": 1, "block_out_channels": [4, 8], "latent_channels": 2}
    AutoencoderKL(**blocks, **channels, norm_num_groups=2, sample_size=8).save_pretrained(folder / "kl")
    chunks = ["first_stage.chunk_size=500", f"first_stage.cache_dir={folder / 'cache'}"]
    return ["first_stage=autoencoder_kl", f"first_stage.model={folder / 'kl'}", *chunks], folder / "cache"


FOR_LATENTS = {  # the flows for latents of any size, small
    "glow": ["flow=glow", "flow.hidden=4", "flow.levels=1"],
    "tarflow": ["flow=tarflow", "flow.hidden=4", "flow.heads=1", "flow.patch=2", "flow.deep_layers=1"],
    "kronecker": ["flow=linear_activation", "flow.linear=kronecker"],
    "reflections": ["flow=linear_activation", "flow.linear=householder", "flow.reflections=4"],
}


@pytest.mark.slow
@pytest.mark.parametrize("flow", FOR_LATENTS)
def test_a_pretrained_autoencoder_goes_all_the_way(flow, pretrained):
    """Read, encode, keep, train a step, sample, decode; what one model has had encoded the next finds."""
    first_stage, cache = pretrained
    kept = {path: path.stat().st_mtime_ns for path in cache.glob("*.f32")}
    small = ["flow.n_flows=1", "network.embed_dim=8", "whitening=dct"]
    tiny = runs.without_flow(runs.TINY_DIGITS)
    engine = Engine.of(runs.settings(*tiny, *FOR_LATENTS[flow], *small, *first_stage))
    assert engine.denoiser.first_stage.latent_shape == (2, 4, 4)
    engine.measure()
    assert len(list(cache.glob("*.f32"))) == 2
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items())
    trained = [p for p in engine.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]
    engine.loss(engine.denoiser.denoiser, *engine.loss_inputs(engine.latents.train[:8], 0)).loss.mean().backward()
    engine.optimizer.make(trained).step()
    assert any(not torch.equal(p, old) for p, old in zip(trained, before, strict=True))
    samples = engine.denoiser.sample(3)
    assert samples.shape == (3, 1, 8, 8)
    assert bool(samples.isfinite().all())


@pytest.mark.slow
def test_first_stages_that_do_not_fit_are_sentences(vae, behind, tmp_path):
    def refused(kind, sentence, *overrides):
        with pytest.raises(kind) as error:
            Engine.of(runs.settings(*BEHIND, *overrides))
        assert sentence in str(error.value)
        assert "\n" not in str(error.value)

    refused(ConfigurationError, "first_stage=vae needs the run that trained it")
    nothing = f"first_stage.run={tmp_path}"
    refused(RunError, f"{nothing} cannot be a first stage: run={tmp_path}", nothing)
    refused(ConfigurationError, "is not an autoencoder: give a run of network=vae", f"first_stage.run={behind[0]}")
    other = ["dataset=mnist", "dataset.download=false", f"first_stage.run={vae[0]}"]
    refused(ConfigurationError, "of images of shape 1×8×8, and images of the dataset have shape 1×28×28", *other)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["network=vae", "conditioner=none"], "loss=denoising network=vae do not go together"),
        (["loss=elbo"], "loss=elbo network=score_flow do not go together"),
        (["network=vae", "loss=elbo"], "an autoencoder does not know classes; set conditioner=none"),
        (["network=vae", "loss=elbo", "conditioner=none", "scaling=edm"], "set scaling=score"),
        (["network=vae", "loss=elbo", "conditioner=none", "first_stage=vae"], "set first_stage=identity"),
    ],
)
def test_combinations_that_make_no_sense(overrides, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        config.check(config.compose(overrides))


def test_where_latents_are_kept_is_no_part_of_a_run():
    one, other = (runs.settings(*BEHIND, f"first_stage.cache_dir={place}") for place in ("a", "b"))
    assert identity.run_id(one) == identity.run_id(other)


@pytest.mark.slow
def test_a_guide_lives_in_the_same_latents(behind, monkeypatch):
    model, guide = flowdiff.load(behind[0]), flowdiff.load(behind[0])
    monkeypatch.setattr("flowdiff.training.assembly.load", lambda run, device: guide)
    settings = config.defaults("guidance", "autoguidance") | {"run": "weaker"}
    assert guide_by(settings)(model)
    weights = guide.first_stage.autoencoder.named_parameters()
    with torch.no_grad():
        next(weight for name, weight in weights if not name.startswith("law.")).add_(1)
    with pytest.raises(ConfigurationError, match="weaker works in the latents of another autoencoder"):
        guide_by(settings)(model)
