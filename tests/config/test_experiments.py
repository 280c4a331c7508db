"""The research questions: every job of every sweep makes sense and takes its first steps, and -m alone expands them."""

import re
from collections import Counter

import pytest
import torch
from cli_process import outcomes
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.utils import get_class
from omegaconf import OmegaConf

import flowdiff
from flowdiff import config
from flowdiff.data.base import TensorSplit
from flowdiff.errors import ConfigurationError
from flowdiff.registry import create
from flowdiff.runs.run_folder import RunFolder
from flowdiff.training import assembly
from flowdiff.training.engine import Engine


def batches(arguments=(), params=None, cases=None, size=None):
    """The jobs that GridSweeper makes of its settings and the command line, in batches of a size."""
    Plugins.instance()  # Hydra loads all plugins anew when it first looks for them, its own sweeper too
    sweeper = get_class("hydra_plugins.flowdiff.GridSweeper")(size, params, cases)
    given = [*(f"{key}={values}" for key, values in sweeper.params.items()), *arguments]
    return sweeper.split_arguments(OverridesParser.create().parse_overrides(given), size)


def grid(*settings):
    """The same in one batch, as tuples."""
    (jobs,) = batches(*settings)
    return [tuple(job) for job in jobs]


def experiment_file(name):
    return (config.CONF / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")


def jobs(name):
    """Every job of an experiment's sweep, and the experiment without -m."""
    sweep = OmegaConf.create(experiment_file(name)).hydra.sweeper
    return [(f"experiment={name}",), *grid([f"experiment={name}"], sweep.get("params"), sweep.get("cases"))]


def setting(job):
    """A job less its seed, which makes no difference to whether it makes sense."""
    return tuple(override for override in job if not override.startswith("seed="))


EXPERIMENTS = config.options("experiment")
NEEDS_MODELS = {"sd_text"}  # from outside, and a GPU: tests/training/test_sd_text.py
EACH = {name: list(dict.fromkeys(map(setting, jobs(name)))) for name in EXPERIMENTS if name not in NEEDS_MODELS}
# The first and the last of each experiment are quick, and what lies between them are slow tests.
SETTINGS = [
    pytest.param(job, id=" ".join(job), marks=() if job in (found[0], found[-1]) else pytest.mark.slow)
    for found in EACH.values()
    for job in found
]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_setting_of_an_experiment_has_at_least_two_seeds(name):
    """Of training, or where that is long of sampling."""
    seeds = min(Counter(setting(job) for job in jobs(name)[1:]).values())
    assert max(seeds, config.compose([f"experiment={name}"]).metrics.repeats) >= 2


def without_files(data):
    """Random images in place of those that lie in files."""
    if hasattr(data, "root"):
        x = torch.randint(0, data.levels, (64, *data.shape), dtype=torch.uint8)
        split = TensorSplit(x, torch.arange(64) % data.num_classes)
        data.prepare_data, data.load = lambda: None, lambda: (split, split)


def behind_an_autoencoder(composed, folder, monkeypatch):
    """An untrained one of the same images, in place of the run that a first stage is to be given."""
    if composed.first_stage.name == "vae":
        theirs = f"experiment=vae_{composed.dataset.name}"
        monkeypatch.setattr(assembly, "load", lambda run: flowdiff.build(theirs).denoiser.requires_grad_(False))
        composed.first_stage.run, composed.first_stage.cache_dir = theirs, str(folder)


def on_a_base(composed, folder):
    """An untrained run of the same architecture, in place of the one that an adapter is to be given."""
    if composed.adapter.name == "none":
        return
    base = RunFolder(folder / "base")
    of_base = OmegaConf.create({**OmegaConf.to_container(composed), "adapter": {"name": "none"}})
    base.write_config(config.resolved(of_base))
    torch.save({"state_dict": Engine.of(base.config()).state_dict(), "global_step": 0}, base.checkpoint)
    composed.adapter.run = str(base.path)


@pytest.mark.filterwarnings("ignore:activation=leakyrelu")
@pytest.mark.parametrize("overrides", SETTINGS)
def test_every_setting_is_sound_and_takes_a_training_and_a_sampling_step(overrides, tmp_path, monkeypatch):
    composed = config.compose([*overrides, "accelerator=cpu"])
    behind_an_autoencoder(composed, tmp_path, monkeypatch)
    on_a_base(composed, tmp_path)
    config.check(composed)
    settings = config.resolved(composed)
    torch.manual_seed(0)
    engine = Engine.of(settings)
    without_files(engine.data)
    engine.measure()
    output = engine.loss(engine.denoiser.denoiser, *engine.loss_inputs(engine.latents.train[:8], 0))
    output.loss.mean().backward()
    trained = [p for p in engine.parameters() if p.grad is not None]
    before = [p.detach().clone() for p in trained]
    engine.optimizer.make(trained).step()
    assert any(not torch.equal(p, old) for p, old in zip(trained, before, strict=True))
    if not engine.denoiser.can_sample:
        return
    samples = engine.denoiser.sample(4, sampler=create("sampler", settings["sampler"] | {"num_steps": 1}))
    assert samples.shape == (4, *engine.data.shape)
    assert samples.isfinite().all()


# What network=unet scaling=edm makes of an experiment that is about densities, autoencoders or classifiers.
REFUSED = {
    "classifier_digits": "loss=cross_entropy network=unet do not go together",
    "clip_digits": "loss=contrastive network=unet do not go together",
    "consistency_digits": "sampler=consistency scaling=edm do not go together",
    "fokker_planck": "loss=nll network=unet do not go together",
    "itarflow_digits": "loss=nll network=unet do not go together",
    "itarflow_mnist_latent": "loss=nll network=unet do not go together",
    "joint_digits": "loss=hybrid network=unet do not go together",
    "lora_digits": "embed_dim is not a setting of network=unet",
    "sd_text": "embed_dim is not a setting of network=unet",
    **{f"vae_{data}": "network=unet" for data in ("cifar10", "digits", "fashion_mnist", "mnist")},
}


# Quick for the experiments that choose a flow or set it, and slow for the others, which only name a data set.
ABOUT_FLOWS = {name for name in EXPERIMENTS if re.search("default_flow|^flow:", experiment_file(name), re.MULTILINE)}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ABOUT_FLOWS else pytest.mark.slow) for name in EXPERIMENTS]
)
def test_every_experiment_takes_a_unet_or_says_in_a_sentence_why_not(name):
    composed = config.compose([f"experiment={name}", "network=unet", "scaling=edm"])
    if name in REFUSED:
        with pytest.raises(ConfigurationError, match=REFUSED[name]):
            config.check(composed)
    else:
        config.check(composed)
        assert not {"flow", "activation", "whitening"} & config.resolved(composed).keys()


def test_captioned_digits_trains_raw_networks_at_every_noise_level():
    """A density is trained where it is used, by likelihood."""
    found = {}
    for network in ("score_flow", "unet", "mlp"):
        settings = config.resolved(config.compose(["experiment=captioned_digits", f"network={network}"]))
        levels = settings["sigma_sampler"]["sigma_min"], settings["sigma_sampler"]["sigma_max"]
        assert levels == (settings["schedule"]["sigma_min"], settings["schedule"]["sigma_max"])
        found[network] = settings["loss"]["name"], settings["start"], settings["sigma_start"], *levels
    assert found["score_flow"] == ("nll", "flow", 0.5, 0.1, 2.0)
    assert found["unet"] == found["mlp"] == ("denoising", "noise", None, 0.002, 80.0)


def test_a_flow_set_by_hand_is_not_left_out():
    given = ["experiment=captioned_digits", "network=unet", "scaling=edm", "flow.hidden=32"]
    with pytest.raises(ConfigurationError, match=r"network=unet does not use a flow.*network=score_flow"):
        config.check(config.compose(given), given)


def test_cases_are_crossed_with_params_and_come_in_batches_when_asked():
    cases = ["network=mlp", "network=unet 'network.channels=[8, 16]' trainer.max_steps=3"]
    crossed = [("network=mlp",), ("network=unet", "network.channels=[8,16]", "trainer.max_steps=3")]
    assert grid([], {"seed": "0,1"}, cases) == [(*case, f"seed={seed}") for case in crossed for seed in (0, 1)]
    # A case may hold a sweep of its own.
    assert grid([], {"seed": 0}, ["a=1,2", "b=3"]) == [("a=1", "seed=0"), ("a=2", "seed=0"), ("b=3", "seed=0")]
    assert [len(batch) for batch in batches(["seed=0,1"], None, ["a=1", "a=2"], 3)] == [3, 1]


def test_without_cases_and_params_the_command_line_is_all():
    assert grid(["a=1,2", "b=3"]) == [("a=1", "b=3"), ("a=2", "b=3")]
    assert grid([]) == [()]


def test_the_command_line_replaces_an_axis_and_what_a_case_says():
    cases, params = ["a=1 b=1", "a=2 b=2", "b=3 a=1"], {"seed": "0,1", "c": "1,2"}
    replaced = ("a=5", "b=1"), ("a=5", "b=2"), ("b=3", "a=5")
    expected = [(*case, "seed=7", f"c={c}") for case in replaced for c in (8, 9)]
    assert grid(["a=5", "seed=7", "c=8,9"], params, cases) == expected
    assert grid(["a=5", "b=6"], None, ["a=1 b=1", "a=2 b=2"]) == [("a=5", "b=6")]  # the cases have become one


def test_an_experiment_expands_by_itself_and_the_command_line_wins(tmp_path):
    """Sweeps that are refused name their jobs and train none of them."""
    commands = [
        ["-m", "experiment=num_steps", "scaling=edm"],
        ["-m", "experiment=n_flows", "scaling=edm", "flow.n_flows=4,6", "seed=3"],
        ["-m", "experiment=flow_vs_unet", "optimizer.lr=-1.0", "trainer.max_steps=3", "seed=7"],
    ]
    results = outcomes("train", commands, tmp_path)
    assert [status for status, _ in results] == [2, 2, 2]
    alone, narrowed, cases = ([line.strip().partition(":")[0] for line in text.splitlines()] for _, text in results)
    assert alone == ["3 of 3 jobs make no sense, so none was started", "seed=0", "seed=1", "seed=2"]
    assert narrowed[1:] == ["flow.n_flows=4", "flow.n_flows=6"]
    assert len(cases) > 3
    assert not any("max_steps" in case or "seed" in case for case in cases)  # all jobs share the command line's
    assert list(tmp_path.rglob("*")) == []
