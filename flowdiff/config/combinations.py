"""Holding a composed config against what its components take and what they need of each other."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf

from flowdiff import registry
from flowdiff.errors import ConfigurationError, nearest
from flowdiff.yaml_defaults import CONF


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_class(value: Any) -> bool:
    return value is None or _is_integer(value) or (OmegaConf.is_list(value) and all(map(_is_integer, value)))


# What the keys outside all groups may hold: the words of the sentence, and the test.
TOP_LEVEL: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "seed": ("an integer ≥ 0", lambda v: _is_integer(v) and v >= 0),
    "force": ("true or false", lambda v: isinstance(v, bool)),
    "tags": ("a list of words, e.g. [one,two]", OmegaConf.is_list),
    "plugins": ("a list of Python files, e.g. [mine.py]", OmegaConf.is_list),
    "num_samples": ("an integer ≥ 1", lambda v: _is_integer(v) and v >= 1),
    "batch_size": ("an integer ≥ 1", lambda v: _is_integer(v) and v >= 1),
    "class_label": ("a class number, a list of them, or null", _is_class),
    "start": ("noise, flow or compare", lambda v: v in ("noise", "flow", "compare")),
    "sigma_start": ("a number > 0 or null", lambda v: v is None or (isinstance(v, int | float) and v > 0)),
    "device": ("auto, cpu or cuda", lambda v: v in ("auto", "cpu", "cuda")),
    "evaluate": ("true or false", lambda v: isinstance(v, bool)),
}


def check(config: DictConfig) -> None:
    """Raise ConfigurationError for the first thing that makes no sense; reads no data."""
    for key in config:
        if key in registry.GROUP_MODULES:
            node = OmegaConf.to_container(config[key], resolve=True)
            registry.check(key, node)
            if not registry.runtime_parameters(registry.resolve(key, node["name"])):
                registry.create(key, node)  # its constructor holds its numbers against each other
    _check_top_level(config)
    _check_combinations(config)
    if "sampler" in config:
        build = {g: registry.create(g, OmegaConf.to_container(config[g], resolve=True)) for g in ("schedule", "sampler")}
        build["schedule"](build["sampler"].num_steps)  # a table cannot be walked in more steps than it has


@cache
def trainer_defaults() -> dict[str, Any]:
    """The trainer's arguments in conf/config.yaml, interpolations as they are written."""
    return OmegaConf.to_container(OmegaConf.load(CONF / "config.yaml").trainer)


def _check_top_level(config: DictConfig) -> None:
    for key, (allowed, fits) in TOP_LEVEL.items():
        if key in config and not fits(config[key]):
            raise ConfigurationError(f"{key}={config[key]} is not allowed: it must be {allowed}.")
    if config.get("resume") and config.get("force"):
        raise ConfigurationError(
            f"resume={config.resume} force=true contradict each other: resume goes on with a run, force starts it anew."
        )
    if "trainer" not in config:
        return
    trainer = config.trainer
    for key, low in (("max_steps", 1), ("accumulate_grad_batches", 1), ("log_every_n_steps", 1)):
        value = trainer[key]
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise ConfigurationError(f"trainer.{key}={value} is not allowed: it must be an integer ≥ {low}.")
    more = [str(key) for key in trainer if key not in trainer_defaults()]
    if more:
        from lightning.pytorch import Trainer

        allowed = inspect.signature(Trainer).parameters
        for key in more:
            if key not in allowed:
                hint = nearest(key, allowed)
                raise ConfigurationError(f"trainer.{key} is not an argument of Lightning's Trainer: {hint}.")
    clip = trainer.gradient_clip_val
    if clip is not None and not (isinstance(clip, int | float) and clip > 0):
        raise ConfigurationError(f"trainer.gradient_clip_val={clip} is not allowed: it must be a number > 0 or null.")


def _check_combinations(config: DictConfig) -> None:
    if "network" not in config:
        return
    network = registry.resolve("network", config.network.name)
    is_density = hasattr(network, "log_prob")
    is_classifier = hasattr(network, "class_log_prob")
    is_autoencoder = hasattr(network, "reconstruct")
    if (is_density or is_classifier or is_autoencoder) and config.scaling.name != "score":
        raise ConfigurationError(
            f"network={config.network.name} scaling={config.scaling.name} makes no sense: this network outputs the "
            "score ∇log p itself, any other scaling would bend it; take scaling=score."
        )
    if registry.resolve("loss", config.loss.name).needs_autoencoder != is_autoencoder:
        raise ConfigurationError(
            f"network={config.network.name} loss={config.loss.name} does not go together: an autoencoder is trained by "
            "network=vae loss=elbo and nothing else is; take both or neither."
        )
    if is_autoencoder and (config.conditioner.name, config.guidance.name) != ("none", "none"):
        raise ConfigurationError(
            f"network={config.network.name} conditioner={config.conditioner.name} guidance={config.guidance.name} "
            "makes no sense: an autoencoder knows no classes; take conditioner=none guidance=none."
        )
    if is_autoencoder and config.first_stage.name != "identity":
        raise ConfigurationError(
            f"network={config.network.name} first_stage={config.first_stage.name} makes no sense: an autoencoder is "
            "trained on the data themselves; take first_stage=identity."
        )
    if config.first_stage.get("train") and not is_density:
        raise ConfigurationError(
            f"first_stage.train=true needs a prior with a log-density and network={config.network.name} has none: take "
            "network=score_flow or first_stage.train=false."
        )
    if registry.resolve("loss", config.loss.name).needs_classifier and not is_classifier:
        raise ConfigurationError(
            f"loss={config.loss.name} trains a classifier and network={config.network.name} is none: take "
            "network=classifier and conditioner=one_hot, or loss=denoising."
        )
    if registry.resolve("loss", config.loss.name).needs_density and not is_density:
        raise ConfigurationError(
            f"loss={config.loss.name} needs a log-density and network={config.network.name} has none: "
            "take network=score_flow, or loss=denoising or score_matching."
        )
    gradient = config.loss.get("gradient")
    if gradient not in (None, "double_backward") and not is_density:
        raise ConfigurationError(
            f"loss.gradient={gradient} is for the score of a flow, and network={config.network.name} gives D itself: "
            "take loss.gradient=double_backward, which for it is an ordinary backward pass."
        )
    if config.accelerator.compile and is_density and gradient not in (None, "directional"):
        raise ConfigurationError(
            f"accelerator.compile=true does not go with loss.gradient={gradient} of a score flow: torch.compile has no "
            "double backward; take loss=nll, loss.gradient=directional or accelerator.compile=false."
        )
    needs_null = registry.resolve("guidance", config.guidance.name).needs_null
    if needs_null and not config.conditioner.get("drop", 0):
        raise ConfigurationError(
            f"guidance={config.guidance.name} needs the null condition, and this model is trained without label "
            "dropout: take conditioner=class with conditioner.drop > 0, or another guidance."
        )
