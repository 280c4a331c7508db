"""Composing a configuration and holding it against what the components take; no torch is imported to compose one.

`compose(overrides)` reads conf/, `check(config)` raises the first offence as one sentence (ConfigurationError), and
`explain(error)` turns Hydra's own errors into such sentences.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flowdiff import registry
from flowdiff.errors import ConfigurationError, RunError
from flowdiff.launch import identity
from flowdiff.launch.run_folder import RunFolder

log = logging.getLogger(__name__)

_PACKAGE = Path(__file__).resolve().parent
# Installed from a wheel, conf/ lies inside the package; in a checkout (pip install -e .), beside it.
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"

# The options that a plugin's flow, network or loss brings along when its constructor asks for one of these groups.
PLUGIN_BRINGS = {"flow": "linear_activation", "activation": "swish", "whitening": "isotropic", "weighting": "edm"}


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


def compose(overrides: Iterable[str] = (), config_name: str = "config") -> DictConfig:
    """The config that `python train.py <overrides>` would see; ConfigurationError where it cannot be composed."""
    overrides = list(overrides)
    load_plugins(overrides)
    try:
        with _hydra():
            return hydra_compose(config_name, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigurationError(explain(error, overrides, config_name)) from error


def resolved(config: DictConfig) -> dict[str, Any]:
    """The config as plain containers with every interpolation resolved, without Hydra's own node."""
    # Only the top level is masked, so that ${…} in what is left still sees the whole.
    plain = {
        key: OmegaConf.to_container(config[key], resolve=True) if OmegaConf.is_config(config[key]) else config[key]
        for key in config
        if key != "hydra"
    }
    if "plugins" in plain:  # found again from any folder
        plain["plugins"] = [str(Path(path).expanduser().resolve()) for path in plain["plugins"]]
    return plain


def defaults(group: str, name: str) -> dict[str, Any]:
    """The settings in conf/<group>/<name>.yaml, or those of a plugin's constructor."""
    path = CONF / group / f"{name}.yaml"
    if path.is_file():
        node = OmegaConf.load(path)
    else:
        stored = ConfigStore.instance().repo.get(group, {}).get(f"{name}.yaml")
        if stored is None:
            raise ConfigurationError(f"{group}={name} is unknown: {registry.nearest(name, options(group))}.")
        node = OmegaConf.create(stored.node)
    inherited = [entry for entry in node.pop("defaults", []) if isinstance(entry, str) and entry != "_self_"]
    settings = OmegaConf.to_container(node, resolve=True)
    return OmegaConf.to_container(OmegaConf.merge(*(defaults(group, name) for name in inherited), settings))


def options(group: str) -> list[str]:
    """The names that can stand behind `<group>=`."""
    stored = ConfigStore.instance().repo.get(group, {})
    return sorted({p.stem for p in (CONF / group).glob("*.yaml")} | {name.removesuffix(".yaml") for name in stored})


def load_plugins(overrides: Iterable[str]) -> None:
    """Import the files named by a `plugins=[…]` override and offer their components as config options.

    A plugin has no YAML: the keyword-only parameters of its constructor, with their defaults, take its place.
    """
    for override in overrides:
        if override.startswith("plugins="):
            try:
                paths = OverridesParser.create().parse_override(override).value()
            except OverrideParseException as error:
                raise ConfigurationError(explain(error, [override])) from error
            import_plugins(paths if isinstance(paths, list) else [paths])


def import_plugins(paths: Iterable[str]) -> None:
    """Import plugin files, and offer each component's defaults to Hydra as an option of its group."""
    for path in paths:
        for group, names in registry.import_plugin(path).items():
            for name in names:
                ConfigStore.instance().store(group=group, name=name, node=_plugin_node(path, group, name))


def _plugin_node(path: str, group: str, name: str) -> dict[str, Any]:
    component = registry.resolve(group, name)
    parameters = registry.hyperparameters(component)
    missing = [key for key, p in parameters.items() if p.default is p.empty]
    if missing:
        raise ConfigurationError(
            f"plugin {path}: {group} {name!r} has no default for {', '.join(missing)}: give every keyword-only "
            "parameter one, the defaults stand in for a YAML file."
        )
    # As the YAML files of its group do, it brings the groups that its constructor asks for.
    wanted = {*registry.runtime_parameters(component), *(["whitening"] if group == "flow" else [])}
    brought = [{f"/{g}@_global_.{g}": option} for g, option in PLUGIN_BRINGS.items() if g in wanted]
    return {"defaults": ["_self_", *brought], "name": name, **{k: p.default for k, p in parameters.items()}}


def check(config: DictConfig) -> None:
    """Raise ConfigurationError for the first thing that makes no sense; reads no data."""
    for key in config:
        if key in registry.ROOMS:
            node = OmegaConf.to_container(config[key], resolve=True)
            registry.check(key, node)
            if not registry.runtime_parameters(registry.resolve(key, node["name"])):
                registry.build(key, node)  # its constructor holds its numbers against each other
    _check_top_level(config)
    _check_combinations(config)
    if "sampler" in config:
        build = {g: registry.build(g, OmegaConf.to_container(config[g], resolve=True)) for g in ("schedule", "sampler")}
        build["schedule"](build["sampler"].num_steps)  # a table cannot be walked in more steps than it has


@cache
def trainer_defaults() -> dict[str, Any]:
    """The trainer's arguments in conf/config.yaml, interpolations as they are written."""
    return OmegaConf.to_container(OmegaConf.load(CONF / "config.yaml").trainer)


def of_run(folder: RunFolder) -> dict[str, Any]:
    """The config of a run folder, by which this version can go on with the run or sample it.

    What an older version did not know yet is as by default today, and is said. Raises RunError where components or
    keys of another version are left.
    """
    settings = folder.config()
    base = OmegaConf.load(CONF / "config.yaml")
    wanted = {
        group: option for node in base.pop("defaults") if OmegaConf.is_dict(node) for group, option in node.items()
    }
    base.pop("hydra")
    try:
        import_plugins(settings.get("plugins", []))
        new = [group for group in wanted if group in registry.ROOMS and group not in settings]
        settings |= {group: defaults(group, wanted[group]) for group in new}
        for group in registry.ROOMS.keys() & settings.keys():
            node = settings[group]
            name = node.get("name") if isinstance(node, dict) else None
            if name is None:
                raise ConfigurationError(f"{group} has no name")
            if name in options(group):
                more = {key: value for key, value in defaults(group, name).items() if key not in node}
                node |= more
                new += [f"{group}.{key}" for key in more]
            registry.check(group, node)
        new += [key for key in base if key not in settings]
        new += [f"trainer.{key}" for key in base.trainer if key not in settings.get("trainer", base.trainer)]
        settings = OmegaConf.to_container(OmegaConf.merge(base, settings), resolve=True)
    except (ConfigurationError, OmegaConfBaseException) as error:
        raise RunError(
            f"{folder.config_file} does not fit this version of flowdiff: {str(error).rstrip('.')}. Train the run "
            "anew, or take the version that made it."
        ) from error
    if new:
        _say_once(f"{folder.path} is of an older version: taken as by default today are {', '.join(new)}")
    return settings


@cache
def _say_once(message: str) -> None:
    log.warning("%s", message)


def explain(error: Exception, overrides: Iterable[str] = (), config_name: str = "config") -> str:
    """One sentence for an error of Hydra or OmegaConf: what was given, what is allowed, what to do."""
    overrides = list(overrides)
    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and "/" in error.missing_cfg_file:
        group, name = error.missing_cfg_file.rsplit("/", 1)
        return f"{group}={name} is unknown: {registry.nearest(name, options(group))}."
    if isinstance(error, OverrideParseException):
        reason = text.splitlines()[0].rstrip(".")
        return f"{error.override} cannot be read as an override ({reason}): write key=value, with its brackets closed."
    failed = re.match(r"Could not (?:override|append to config|delete from config)\.? ?'([^']+)'", text)
    if failed and "No match in the defaults list" in text:
        return _misplaced_group(failed.group(1), overrides)
    if failed:
        return _unknown_key(failed.group(1), overrides, config_name)
    first = (text.strip() or str(error.__cause__ or type(error).__name__)).splitlines()[0].rstrip(". ")
    return f"{first}."


@contextmanager
def _hydra():
    used = GlobalHydra.instance().hydra  # by the sweep in which something is to be composed or explained
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(CONF), version_base="1.3", job_name="flowdiff"):
            yield
    finally:
        if used is not None:
            GlobalHydra.instance().initialize(used)


def _without(overrides: list[str], key: str) -> list[str]:
    return [o for o in overrides if o.lstrip("+~").partition("=")[0] != key]


def _unknown_key(key: str, overrides: list[str], config_name: str) -> str:
    parent, _, leaf = key.rpartition(".")
    group = parent.split(".")[0]
    try:
        # Composed without any key like it, the config shows what would have been allowed there.
        kept = [o for o in overrides if o.lstrip("+~").partition("=")[0] in options_of_groups() or "=" not in o]
        with _hydra():
            config = hydra_compose(config_name, kept)
        if group and group not in config:
            return _misplaced_group(group, overrides)
        node = OmegaConf.select(config, parent) if parent else config
        allowed = [str(k) for k in node] if OmegaConf.is_config(node) else []
    except (HydraException, OmegaConfBaseException):
        allowed = []
    if not allowed:
        return f"{key} is not a setting of this configuration: see --cfg job for all of them."
    hint = registry.nearest(leaf, [f for f in allowed if f != "name"])
    return f"{key} is not a setting{f' of {parent}' if parent else ''}: {hint}."


def options_of_groups() -> set[str]:
    """The config groups that have a folder under conf/."""
    return {p.name for p in CONF.iterdir() if p.is_dir()}


def _misplaced_group(group: str, overrides: list[str]) -> str:
    if group not in registry.ROOMS:
        return f"{group} is not a config group: {registry.nearest(group, sorted(options_of_groups() - {'hydra'}))}."
    bringers = {
        "flow": "network=score_flow",
        "whitening": "network=score_flow",
        "weighting": "loss=denoising or hybrid",
    }
    needs = bringers.get(group, "network=score_flow or network=mlp")
    given = " ".join(o for o in overrides if o.split("=")[0] in ("network", "loss")) or "this configuration"
    return f"{group} has no part in {given}: it belongs to {needs}; leave {group} out or change that."


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
                hint = registry.nearest(key, allowed)
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


def _identity_of(root: DictConfig) -> str:
    return identity.run_id(resolved(root))


def _run_folder(root: DictConfig) -> str:
    sweep = _sweep_name(root) if root.hydra.mode == RunMode.MULTIRUN else None
    return identity.run_folder(identity.run_name(root.hydra.overrides.task, sweep), _identity_of(root))


def _run_dir(root: DictConfig) -> str:
    if root.resume:
        return root.resume
    # A run is found by what it is, whatever it was called when it was first asked for.
    there = sorted(Path("outputs").glob(f"*-{_identity_of(root)}"))
    further = [*(p for p in there if (p / "result.json").is_file()), *(p for p in there if any(p.glob("*/last.ckpt")))]
    return str(next(iter([*further, *there]), Path("outputs") / _run_folder(root)))


def _sweep_name(root: DictConfig) -> str:
    return identity.sweep_name(root.hydra.overrides.task, root.hydra.runtime.choices.get("experiment"))


OmegaConf.register_new_resolver("run_id", lambda *, _root_: _identity_of(_root_), replace=True)
OmegaConf.register_new_resolver("run_folder", lambda *, _root_: _run_folder(_root_), replace=True)
OmegaConf.register_new_resolver("run_dir", lambda *, _root_: _run_dir(_root_), replace=True)
OmegaConf.register_new_resolver("sweep_name", lambda *, _root_: _sweep_name(_root_), replace=True)
