"""Composing and checking: what makes no sense is refused in one sentence before anything is built."""

import pytest
import torch

from flowdiff import config, registry
from flowdiff.errors import ConfigurationError
from flowdiff.testing.conditioners import inputs_of
from flowdiff.training.engine import Engine
from flowdiff.yaml_defaults import bringers


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["flow=reelnvp"], ["flow=reelnvp is unknown", "did you mean 'realnvp'", "linear_activation"]),
        (["flow.n_flow=3"], ["flow.n_flow is not a setting of flow", "did you mean 'n_flows'", "levels"]),
        (["flow.n_flows=many"], ["flow.n_flows=many is not allowed", "valid integer"]),
        (["flow.n_flows=0"], ["flow.n_flows=0 is not allowed", "greater than 0"]),
        (["flow.n_flows=2.5"], ["flow.n_flows=2.5 is not allowed"]),
        (["dataset.batch_size=-1"], ["dataset.batch_size=-1 is not allowed", "greater than 0"]),
        (["schedule.sigma_min=100"], ["sigma_min", "100", "80"]),
        (["scaling=edm"], ["network=score_flow scaling=edm do not go together", "set scaling=score"]),
        (["network=unet", "loss=nll"], ["loss=nll network=unet do not go together", "needs a log-density"]),
        (["network=mlp", "loss=hybrid"], ["loss=hybrid network=mlp do not go together", "needs a log-density"]),
        (["network=unet", "flow=realnvp"], ["network=unet does not use a flow", "set network=score_flow"]),
        (["network=unet", "flow.n_flows=3"], ["network=unet does not use a flow"]),
        (["loss=score_matching", "weighting=edm"], ["does not use a weighting", "loss=denoising or loss=hybrid"]),
        (["loss=nll", "weighting=edm"], ["loss=nll weighting=edm do not go together", "weighting=unit, sigma"]),
        (["loss=hybrid", "loss.fokker_planck=-1"], ["loss.fokker_planck=-1 is not allowed", "greater than or equal"]),
        (["loss=nll", "loss.fokker_planck_share=0.0"], ["loss.fokker_planck_share=0.0 is not allowed"]),
        (["loss=nll", "loss.fokker_planck_every=0"], ["loss.fokker_planck_every=0 is not allowed"]),
        (["start=compare"], ["start=compare is not allowed", "noise or flow"]),
        (["sigma_start=0.5"], ["start=noise sigma_start=0.5 contradict each other", "set start=flow"]),
        (
            ["loss.fokker_planck=0.1", "network=unet", "scaling=edm"],
            ["loss.fokker_planck=0.1 network=unet do not go together", "set loss.fokker_planck=0"],
        ),
        (
            ["loss.fokker_planck=0.1", "activation=elu"],
            ["loss.fokker_planck=0.1 activation=elu do not go together", "softplus, swish or tanh"],
        ),
        (
            ["loss=nll", "loss.fokker_planck=0.1", "accelerator.compile=true"],
            ["loss.fokker_planck=0.1 accelerator.compile=true do not go together"],
        ),
        (["guidance=cfg", "conditioner.drop=0.0"], ["guidance=cfg conditioner=", "needs the null condition"]),
        (["guidance=cfg", "conditioner=none"], ["guidance=cfg conditioner=", "needs the null condition"]),
        (["loss=cross_entropy"], ["loss=cross_entropy network=score_flow do not go together", "trains a classifier"]),
        (["network=classifier", "scaling=edm"], ["network=classifier scaling=edm do not go together"]),
        (["sede=3"], ["sede is not a setting", "did you mean 'seed'"]),
        (["seed=-1"], ["seed=-1 is not allowed"]),
        (["trainer.max_steps=0"], ["trainer.max_steps=0 is not allowed"]),
        (["trainer.max_step=5"], ["trainer.max_step is not a setting", "did you mean 'max_steps'"]),
        (["trainer.gradient_clip_val=-1"], ["trainer.gradient_clip_val=-1 is not allowed"]),
        (["sampler=ddpm", "schedule=ddpm", "sampler.num_steps=2000"], ["2000", "1000"]),
        (["logger.mode=online"], ["logger.mode=online needs a W&B API key"]),
        (["accelerator.devices=0"], ["accelerator.devices=0 is not allowed: input should be 'auto', or"]),
        (["accelerator.precision=bf16-true"], ["accelerator.precision=bf16-true is not allowed"]),
        (["resume=x", "force=true"], ["contradict each other"]),
        (["experiment=n_flow"], ["experiment=n_flow is unknown: did you mean 'n_flows'", "activations"]),
        (["+trainer.max_setps=5"], ["trainer.max_setps is not an argument of Lightning", "did you mean 'max_steps'"]),
        (["accelerator.compile=true"], ["accelerator.compile=true do not go together", "loss=nll"]),
        (["flows=realnvp"], ["flows is not a", "did you mean 'flow'"]),
        (["measurement=inpaint"], ["measurement=… is a setting of sample.py, and train.py has no measurement"]),
        (["flow.n_flows=[1"], ["flow.n_flows=[1"]),
    ],
)
def test_offences(overrides, parts, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # no W&B key there
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(ConfigurationError) as error:
        config.check(config.compose(overrides))
    text = str(error.value)
    assert all(part in text for part in parts), text
    assert text.endswith(".")
    assert "\n" not in text


UNLABELLED = ("checkerboard", "swiss_roll", "image_zip", "image_folder", "image_tars", "image_table")
# From outside: tests/training/test_latents.py, test_text.py, test_adapters.py, test_controls.py and test_teachers.py.
NEEDS_A_MODEL = {
    *(("first_stage", "vae"), ("first_stage", "autoencoder_kl"), ("conditioner", "clip")),
    *(("conditioner", "pretrained_text"), ("adapter", "lora"), ("adapter", "full"), ("adapter", "control")),
    *(("loss", "consistency_distillation"), ("loss", "inverse_distillation")),
}
ONLY_SAMPLING = ("measurement", "posterior")  # groups of sample.py, see tests/evaluation/restoration/
TRAINED = [group for group in registry.GROUP_MODULES if group not in ONLY_SAMPLING]
OPTIONS = [(group, name) for group in TRAINED for name in config.options(group)]
TRAINED_BY_THEIR_OWN = {
    "classifier": ["loss=cross_entropy", "conditioner=one_hot"],
    "vae": ["loss=elbo", "conditioner=none"],
    "clip": ["loss=contrastive", "conditioner=word_ids", "dataset=captioned_digits"],
}


@pytest.mark.filterwarnings("ignore:activation=leakyrelu")
@pytest.mark.parametrize(("group", "name"), [option for option in OPTIONS if option not in NEEDS_A_MODEL])
def test_every_option_composes_checks_and_builds(group, name):
    overrides = [f"{group}={name}"]
    if group == "scaling" and name != "score":
        overrides.append("network=mlp")
    if name in ("consistency", "scm"):
        loss = name if group == "loss" else "consistency"
        overrides = ["network=mlp", f"loss={loss}", "scaling=consistency", "sampler=consistency"]
    if name in ("text", "class_and_text", "class_map"):
        overrides.append("dataset=captioned_digits")
    if group == "dataset" or name in ("text", "class_and_text", "class_map"):
        overrides.append("flow=realnvp")  # a rotation of CIFAR-10's 3,072 dimensions takes ten seconds here
    for network, own in TRAINED_BY_THEIR_OWN.items():
        if f"{group}={name}" in (f"network={network}", own[0]) or (name == "word_ids" and network == "clip"):
            overrides += [f"network={network}", *own]
    if name in UNLABELLED:
        overrides += ["conditioner=none", "metrics.frechet=false"]
    composed = config.compose(overrides)
    config.check(composed)
    engine = Engine.of(config.resolved(composed))
    assert engine.num_parameters > 0
    x = torch.zeros(2, *engine.data.shape)
    engine.conditioner.fit(["a caption"])
    cond = engine.denoiser.cond_of(inputs_of(engine.conditioner, 2))
    assert engine.denoiser.eval()(x, torch.ones(2), cond).shape == x.shape


@pytest.mark.parametrize("network", config.options("network"))
@pytest.mark.parametrize("scaling", config.options("scaling"))
def test_raw_networks_take_every_scaling_and_those_that_give_a_score_only_score(network, scaling):
    composed = config.compose([f"network={network}", f"scaling={scaling}", *TRAINED_BY_THEIR_OWN.get(network, [])])
    if network in ("score_flow", *TRAINED_BY_THEIR_OWN) and scaling != "score":
        with pytest.raises(ConfigurationError, match="do not go together"):
            config.check(composed)
    else:
        config.check(composed)


def test_flow_brings_its_activation_and_whitening_and_both_can_be_replaced():
    default, linear = config.compose(), config.compose(["flow=linear_activation"])
    assert (default.flow.name, default.activation.name, default.whitening.name) == ("realnvp", "swish", "isotropic")
    assert (linear.activation.name, linear.whitening.name) == ("softplus", "zca")
    assert config.compose(["whitening=zca"]).whitening.name == "zca"
    assert "flow" not in config.compose(["network=unet"])


@pytest.mark.parametrize("network", config.options("network"))
def test_each_network_brings_its_sampler_and_it_can_be_replaced(network):
    brought = {name: option for group, name, option in bringers("sampler") if group == "network"}
    chosen = [f"network={network}"]
    assert config.compose(chosen).sampler.name == brought[network]
    assert config.compose([*chosen, "sampler=lms"]).sampler == config.defaults("sampler", "lms")
    assert config.compose([*chosen, "sampler.num_steps=7"]).sampler.num_steps == 7
    experiment = config.compose(["experiment=scalings", *chosen, "sampler=unipc"])  # it chooses a network itself
    assert experiment.sampler.name == "unipc"


def test_resolved_is_plain_and_without_hydra():
    plain = config.resolved(config.compose())
    assert plain["trainer"]["val_check_interval"] == plain["metrics"]["every_n_steps"]
    assert "hydra" not in plain
    assert type(plain["flow"]) is dict
