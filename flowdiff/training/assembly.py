"""From a config to the parts of a run, and from a run folder to its trained model.

The config ends here: nobody after this module reads a config node, except to write it to disk or to a logger. Lightning
is not imported, so that sampling, and checking the jobs of a sweep, need not wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch

from flowdiff import config as configs
from flowdiff.data.base import DataModule
from flowdiff.data.hints import Hint
from flowdiff.data.pixels import centred
from flowdiff.diffusion.denoiser import Denoiser
from flowdiff.diffusion.guidance import Guidance
from flowdiff.diffusion.hinting import Hinting
from flowdiff.diffusion.losses.anchored import Anchored
from flowdiff.diffusion.losses.base import Loss
from flowdiff.diffusion.losses.learned_prior import LearnedPrior
from flowdiff.diffusion.losses.one_diffusion import OneDiffusion
from flowdiff.diffusion.model import ConditionedDenoiser, Guiding, Sampling, check_trained_at
from flowdiff.diffusion.samplers.clipping import DataRange
from flowdiff.diffusion.schedules import Schedule
from flowdiff.diffusion.sigma_samplers import SigmaSampler
from flowdiff.errors import ConfigurationError, RunError
from flowdiff.evaluation.metrics import Metrics
from flowdiff.loggers.base import Tracker
from flowdiff.models.adapters import Adapter, peft_format
from flowdiff.models.adapters.control import ControlNet
from flowdiff.models.adapters.deltas import add, changes, keep_only_changes, merge
from flowdiff.models.conditioners.scaled import Scaled
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.first_stage.base import AutoencoderStage, FirstStage
from flowdiff.models.flows.base import Flow
from flowdiff.models.networks.base import AutoencoderNetwork, Density, ImageTextNetwork, Network
from flowdiff.models.nn import control
from flowdiff.models.nn.control import HintPart
from flowdiff.registry import completed, create, resolve
from flowdiff.runs.identity import id_of_folder
from flowdiff.runs.run_folder import RunFolder, clip_of
from flowdiff.shapes import times
from flowdiff.training.accelerators import Accelerator
from flowdiff.training.optimizers import Optimizer
from flowdiff.training.weights import trained_weights
from flowdiff.yaml_defaults import options

Node = Mapping[str, Any]  # a config node: `name` and settings
Load = Callable[[str], ConditionedDenoiser]


@dataclass(frozen=True)
class Base:
    """The run whose model is adapted: its id, and a hash of the weights in its checkpoint."""

    run_id: str
    weights: str

    @property
    def name(self) -> str:
        """What a file of peft calls it."""
        return f"flowdiff:{self.run_id}:{self.weights}"


@dataclass(frozen=True)
class ModelParts:
    """The model of a run, what trains it and the data it is trained on.

    adapter: what is trained of the model, if it is that of another run, `base`.
    """

    denoiser: ConditionedDenoiser
    loss: Loss
    sigma_sampler: SigmaSampler
    optimizer: Optimizer
    data: DataModule
    adapter: Adapter
    base: Base | None

    @property
    def schedule(self) -> Schedule:
        """The noise levels that the run samples at."""
        return self.denoiser.sampling.schedule


@dataclass(frozen=True)
class RunParts(ModelParts):
    """Everything that a run consists of, each part built once.

    trainer holds Lightning's own arguments. `seed` seeds every random number of the run.
    """

    metrics: Metrics
    accelerator: Accelerator
    tracker: Tracker
    trainer: dict[str, Any]
    seed: int


def assemble(config: Node) -> ModelParts:
    """Build the model of a checked, resolved config, and what trains it; touches no data file.

    Raises:
        ConfigurationError: components do not fit each other or the shape of the data.
    """
    data = create("dataset", config["dataset"])
    conditioner = create("conditioner", config["conditioner"], num_classes=data.num_classes, locate=clip_of)
    first_stage = create("first_stage", config["first_stage"], shape=data.shape, load=load)
    weighting = _optional("weighting", config)
    loss: Loss = create("loss", config["loss"], weighting=weighting, load=load, guided=_guided_by)
    if loss.scales is not None:
        conditioner = Scaled(conditioner, loss.scales)
    runtime: dict[str, Any] = {
        "shape": first_stage.latent_shape,
        "conditioner": conditioner,
        "cond_dim": conditioner.dim,
        "token_dim": conditioner.token_dim,
        "num_classes": data.num_classes,
        "embed_dim": config["network"].get("embed_dim"),
    }
    for group in ("activation", "whitening", "flow"):  # each may be an argument of the next, and of the network
        runtime[group] = _optional(group, config, **runtime)
    del runtime["embed_dim"]  # the network's own setting
    network = create("network", config["network"], **runtime, gradient=loss.gradient)
    if not isinstance(network, Network):
        raise ConfigurationError(
            f"network={config['network']['name']} is not a network: derive the class from "
            "flowdiff.models.networks.base.Network, or from Density if it has a log-density."
        )
    if isinstance(network, Density):
        # By default cuDNN rounds the factors of a float32 convolution to 10 bits (TF32). A score would be off by up to
        # 3 %, and an inverse by 0.1; the gradients of other networks bear it, and their convolutions stay as fast.
        torch.backends.cudnn.allow_tf32 = False
    hinting = _hinting(config["hint"], data)
    if hinting is not None:
        _check_hinted(network, config, first_stage, config["hint"]["name"])
        control.attach(network, HintPart(0, hinting.shape))
    if config["accelerator"]["channels_last"]:
        network.to(memory_format=torch.channels_last)
    if config["accelerator"]["compile"]:
        _compile(network)
    if runtime["flow"] is not None and loss.differentiates_score:
        _check_derivatives(runtime["flow"], config["flow"]["name"], loss.gradient)
    if loss.fokker_planck:
        _check_second_derivatives(runtime["flow"], network, config)
        loss = OneDiffusion(loss, loss.fokker_planck, loss.fokker_planck_share, loss.fokker_planck_every)
    sampling = Sampling(
        create("sampler", config["sampler"]),
        create("schedule", config["schedule"]),
        guide_by(config["guidance"]),
        create("sigma_sampler", config["sigma_sampler"]),
        {group: config[group] for group in ("sampler", "schedule", "guidance")},
        config["clip"],
        config["start"],
        config["sigma_start"],
    )
    if sampling.start == "flow":
        _check_start(network, config["network"]["name"], sampling)
    if isinstance(first_stage, AutoencoderStage) and first_stage.trained:
        loss = LearnedPrior(loss, first_stage, sampling.schedule.sigma_min)
    denoiser = ConditionedDenoiser(
        Denoiser(network, create("scaling", config["scaling"])),
        conditioner,
        first_stage,
        data.values.to_uint8,  # not a method of the data: the weight average deep-copies what the model holds
        sampling,
        DataRange(first_stage.latent_shape[0], images=first_stage.is_identity and data.levels is not None),
        hinting,
    )
    part, added = None, _hinting(config["adapter"].get("hint"), data)
    if added is not None:
        _check_hinted(network, config, first_stage, "adapter.hint")
        part = HintPart(0 if hinting is None else hinting.shape[0], added.shape)
    adapter: Adapter = create("adapter", config["adapter"], part=part)
    base = None if adapter.run is None else _adapt(denoiser, adapter, adapter.run)
    if added is not None:
        _extend(denoiser, added)
    if adapter.anchor:
        if isinstance(network, AutoencoderNetwork | ImageTextNetwork):
            raise ConfigurationError(
                f"adapter.anchor={adapter.anchor:g} is a distance of denoisers or densities, and network="
                f"{config['network']['name']} is neither: set adapter.anchor=0."
            )
        loss = Anchored(loss, adapter.anchor, adapter.anchor_steps)
    optimizer = create("optimizer", config["optimizer"])
    return ModelParts(denoiser, loss, sampling.trained_levels, optimizer, data, adapter, base)


def assemble_run(config: Node) -> RunParts:
    """Build all parts of a run except Lightning's Trainer, and check that they fit; touches no data file.

    Raises:
        ConfigurationError: components do not fit each other or the shape of the data.
        RunError: another run that this one uses cannot be read.
    """
    parts = assemble(config)
    parts.denoiser.sampling.guide(parts.denoiser)  # it may read another run, and refuse it
    parts.loss.check(parts.denoiser)  # it may, too
    metrics = create("metrics", config["metrics"], data=parts.data)
    metrics.check(parts.denoiser)
    accelerator: Accelerator = create("accelerator", config["accelerator"])
    accelerator.set_tf32()  # last: the models of other runs, which are loaded on the way, set it too
    return RunParts(
        **{field.name: getattr(parts, field.name) for field in fields(parts)},
        metrics=metrics,
        accelerator=accelerator,
        tracker=create("logger", config["logger"]),
        trainer=dict(config["trainer"]),
        seed=config["seed"],
    )


def _adapt(model: ConditionedDenoiser, adapter: Adapter, run: str) -> Base:
    """Give a new model the weights of the run that is its base, and the adapter."""
    if model.first_stage.trained:
        raise ConfigurationError(
            f"adapter.run={run} has trained its first stage together with the model, which an adapter cannot: give a "
            "run with first_stage.train=false."
        )
    try:
        parts, base = load_merged(run)
    except RunError as error:
        raise RunError(f"adapter.run={run} cannot be adapted: {error}") from error
    theirs = parts.denoiser
    if (trained := _kind_of_data(theirs)) != (given := _kind_of_data(model)):
        raise ConfigurationError(
            f"adapter.run={run} is a model of {trained}, and the dataset has {given}: give a dataset of the same shape "
            "and classes, or another run."
        )
    if isinstance(parts.adapter, ControlNet):
        raise ConfigurationError(
            f"adapter.run={run} is itself a run of adapter=control: give its base, adapter.run={parts.adapter.run}, "
            "and put several controls together at sampling, adapters=[…]."
        )
    model.load_state_dict(theirs.state_dict())
    adapter.attach(model)
    keep_only_changes(model)
    return base


def _kind_of_data(model: ConditionedDenoiser) -> str:
    classes = "without classes" if model.num_classes is None else f"of {model.num_classes} classes"
    return f"samples of shape {times(model.first_stage.latent_shape)} {classes}"


def load(
    run: str | Path,
    device: torch.device | str = "cpu",
    moved: Mapping[str, Any] | None = None,
    adapters: Sequence[Mapping[str, Any]] = (),
) -> ConditionedDenoiser:
    """The trained model of a run folder with its averaged weights, in eval mode; RunError if there is none.

    The changes of an adapter are added to the weights of its base, W = W₀ + ΔW, and those of several adapters too,
    W = W₀ + Σ wᵢ·ΔWᵢ.

    Args:
        run: the folder.
        device: where to put the model.
        moved: paths that are not where the run recorded them, e.g. {"first_stage.run": "vae", "dataset.path": "data"}.
        adapters: adapters of this run with their weights, [{"run": folder, "weight": 0.7}, …]; a folder is that of a
            run, or of files of peft; without a weight it is 1.
    """
    return load_parts(run, device, moved, adapters).denoiser


def load_parts(
    run: str | Path,
    device: torch.device | str = "cpu",
    moved: Mapping[str, Any] | None = None,
    adapters: Sequence[Mapping[str, Any]] = (),
) -> ModelParts:
    """The trained model of a run folder, what trained it, and the data it was trained on (not read yet)."""
    if torch.device(device).type == "cuda" and (torch.device(device).index or 0) >= torch.cuda.device_count():
        raise ConfigurationError(
            f"device={device} needs a GPU that torch can use, and there are {torch.cuda.device_count()} here: set "
            "device=cpu or device=auto."
        )
    parts, base = load_merged(run, moved)
    found = [(_added(one["run"], parts.denoiser, base, run), one.get("weight", 1.0)) for one in adapters]
    for of_one, weight in found:  # after all are read: files of peft hold W₀ + ΔW of some weights
        if isinstance(of_one, ConditionedDenoiser):
            _add_controls(parts.denoiser, of_one, weight)
        else:
            add(parts.denoiser, of_one, weight)
        parts.denoiser.levels_file = None  # the levels of schedule=optimal there are those of the run's own model
    parts.denoiser.to(device)
    return parts


def _added(
    folder: str, model: ConditionedDenoiser, base: Base, run: str | Path
) -> dict[str, torch.Tensor] | ConditionedDenoiser:
    """The changes of an adapter of the run whose model is given, or the model that it controls; RunError if neither."""
    path = Path(folder).expanduser()
    if peft_format.is_adapter(path):
        return peft_format.changes(path, model, base.name)
    parts, _ = load_unmerged(path)
    if parts.base is None:
        raise RunError(f"adapters names {folder}, which is not a run of an adapter: give a run of adapter=lora.")
    if parts.base.weights != base.weights:
        raise RunError(
            f"adapters names {folder}, an adapter of run {parts.base.run_id}, and run={run} is {base.run_id}: give "
            "adapters of that run, or run=<the folder of their base>."
        )
    if not isinstance(parts.adapter, ControlNet):
        return changes(parts.denoiser)
    if model.hinting is not None:
        raise RunError(
            f"adapters names {folder}, a control, and run={run} reads hints itself: sample run={folder} instead."
        )
    return parts.denoiser


def _add_controls(model: ConditionedDenoiser, other: ConditionedDenoiser, strength: float) -> None:
    """Add the controls of another model of the same base, and the hints that they read."""
    assert other.hinting is not None  # a control reads one
    control.add(model, other, 0 if model.hinting is None else model.hinting.shape[0], strength)
    _extend(model, other.hinting)


def _extend(model: ConditionedDenoiser, hinting: Hinting) -> None:
    """Let a model read further hints behind its own."""
    if model.hinting is None:
        model.hinting = hinting
    else:
        model.hinting.extend(hinting)


def _hinting(node: Node | str | None, data: DataModule) -> Hinting | None:
    """The hints of a config node, or of a name; None without."""
    if node is None:
        return None
    node = {"name": node} if isinstance(node, str) else node
    if "name" not in node:
        raise ConfigurationError(
            f"adapter.hint={dict(node)} does not name a hint: give a name, e.g. {{name: low_resolution, factor: 2}}."
        )
    kind = resolve("hint", str(node["name"]))
    whole = completed("hint", node) if node["name"] in options("hint") else node  # one of a plugin has no YAML
    hint = create("hint", whole, shape=data.shape, data=data)
    if not isinstance(hint, Hint):
        raise ConfigurationError(
            f"hint={node['name']} ({kind.__name__}) is no hint: derive the class from flowdiff.data.hints.Hint."
        )
    if not hint.channels:
        return None
    values = data.values  # not the data itself: the weight average deep-copies what the model holds
    return Hinting(hint, partial(centred, values), values.quantize, hint.shape[1:])


def _check_hinted(network: Network, config: Node, first_stage: FirstStage, which: str) -> None:
    """ConfigurationError unless the network can be controlled and works in the space of the images."""
    if not network.takes_hint:
        raise ConfigurationError(
            f"hint={which} and network={config['network']['name']} do not go together: no net of it reads a hint; take "
            "network=score_flow, unet or mlp."
        )
    if not first_stage.is_identity:
        raise ConfigurationError(
            f"hint={which} and first_stage={config['first_stage']['name']} do not go together: a hint is made of an "
            "image, and the model is trained on latents; set first_stage=identity."
        )


def load_merged(run: str | Path, moved: Mapping[str, Any] | None = None) -> tuple[ModelParts, Base]:
    """The parts of a run with its trained model, merged with its adapter, and how an adapter of it names it."""
    parts, base = load_unmerged(run, moved)
    merge(parts.denoiser)
    parts.denoiser.requires_grad_(False)
    return parts, base


def load_unmerged(run: str | Path, moved: Mapping[str, Any] | None = None) -> tuple[ModelParts, Base]:
    """The parts of a run with its trained model, whose weights and their changes by an adapter are apart."""
    folder = RunFolder.open(run)
    parts = assemble(configs.of_run(folder, moved))
    try:
        weights = trained_weights(folder)
        check_base(parts.base, weights.adapter_base, folder)
        parts.denoiser.load_state_dict(weights.state)
        parts.denoiser.levels_file = weights.levels
    except RunError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0].split(". ")[0].rstrip(":")
        held = f"{folder.path} holds no weights" if folder.exported() else f"{folder.checkpoint} is not a checkpoint"
        raise RunError(
            f"{held} of this run's configuration ({reason}): give the folder of a run made by this version of flowdiff."
        ) from error
    parts.denoiser.eval().requires_grad_(False)
    return parts, Base(id_of_folder(folder) or "", weights.hash)


def check_base(base: Base | None, trained_on: Mapping[str, str] | None, folder: RunFolder) -> None:
    """Raise RunError if the checkpoint of an adapter belongs to another base, `trained_on`, than the run has found."""
    if base is not None and trained_on is not None and trained_on["weights"] != base.weights:
        raise RunError(
            f"{folder.checkpoint} is an adapter of run {trained_on['run_id']} with other weights than those of the run "
            f"that adapter.run names now, {base.run_id}: give adapter.run=<the folder of its base>, or train the "
            "adapter again."
        )


def guide_by(node: Node, negative_prompt: str | None = None) -> Guiding:
    """A function that puts a model into the guidance of a config node; it creates the guidance of a model once.

    Args:
        node: the config node.
        negative_prompt: what takes the place of the null condition; None for the null condition itself.
    """
    made: list[tuple[ConditionedDenoiser, ConditionedDenoiser | None, Guidance]] = []

    def guide(model: ConditionedDenoiser, start_model: ConditionedDenoiser | None = None, /) -> Guidance:
        if not made or made[0][0] is not model or made[0][1] is not start_model:
            made[:] = [(model, start_model, _guided(model, node, negative_prompt, start_model))]
        return made[0][2]

    return guide


def _guided(
    model: ConditionedDenoiser,
    node: Node,
    negative_prompt: str | None = None,
    start_model: ConditionedDenoiser | None = None,
) -> Guidance:
    """The model in the guidance of a config node; ConfigurationError where they do not fit."""
    if model.hinting is not None and node["name"] not in ("none", "cfg"):
        raise ConfigurationError(
            f"guidance={node['name']} does not know the hints of this model: set guidance=cfg or none."
        )
    if negative_prompt is not None and (node["name"] != "cfg" or not model.conditioner.reads_text):
        raise ConfigurationError(
            f"negative_prompt={negative_prompt!r} takes the place of the null condition in guidance=cfg of a model "
            f"that reads text, and this is guidance={node['name']}"
            + ("" if model.conditioner.reads_text else " of a model that does not")
            + ": remove negative_prompt."
        )
    starting = start_model or model
    every = None if model.num_classes is None or model.conditioner.reads_text else torch.arange(model.num_classes)
    return create(
        "guidance",
        node,
        denoiser=model,
        null=_null_of(model, negative_prompt),
        starting=starting.network,
        starting_null=_null_of(starting, negative_prompt),
        classes=None if every is None else lambda: model.cond_of(every),
        num_classes=model.num_classes,
        scales=model.conditioner.scales,
        load=partial(load, device=model.sigma_data.device),
        guided=lambda inner: _guided(model, _whole(inner), negative_prompt, start_model),
    )


def _guided_by(model: ConditionedDenoiser, node: Node) -> Guidance:
    """The model in the guidance of settings that may lack some, as a loss asks for its teacher's."""
    return _guided(model, _whole(node))


def _null_of(model: ConditionedDenoiser, negative_prompt: str | None) -> Callable[[int], Conditioning | None] | None:
    """n → the null condition of n samples, or that of the negative prompt; None if the model has none."""
    if negative_prompt is not None:
        return lambda n: model.conditioner.negative(negative_prompt, n)
    return model.conditioner.null if model.conditioner.drop else None


def _whole(inner: Node) -> dict[str, Any]:
    """The node of guidance.inner with its missing settings filled in; ConfigurationError if it has no name."""
    if "name" not in inner:
        raise ConfigurationError(
            f"guidance={dict(inner)} does not name a guidance: give it a name, e.g. {{name: cfg, scale: 2}}."
        )
    return completed("guidance", inner)


def _optional(group: str, config: Node, **runtime: Any) -> Any:
    """The component of a group; None where the config does not have the group."""
    return create(group, config[group], **runtime) if group in config else None


def _check_derivatives(flow: Flow, name: str, gradient: str) -> None:
    if gradient == "double_backward" and not flow.twice_differentiable:
        raise ConfigurationError(
            f"this loss differentiates the score, and flow={name} can be differentiated only once: set "
            "loss.gradient=directional, loss=nll or another flow."
        )
    if gradient == "forward_mode" and not flow.forward_differentiable:
        raise ConfigurationError(
            f"loss.gradient=forward_mode does not go with flow={name}, whose operations torch cannot differentiate "
            "in forward mode: set loss.gradient=directional."
        )


def _check_start(network: Network, name: str, sampling: Sampling) -> None:
    if not isinstance(network, Density):
        raise ConfigurationError(
            f"start=flow draws from a density, and network={name} does not have one: set start=noise or "
            "network=score_flow."
        )
    if sampling.sigma_start is not None:
        check_trained_at(sampling.sigma_start, sampling.trained_levels)
        sampling.schedule(sampling.sampler.num_steps, sampling.sigma_start)  # it refuses a start above its own


def _check_second_derivatives(flow: Flow | None, network: Network, config: Node) -> None:
    smooth = flow is None or flow.smooth
    if smooth and isinstance(network, Density) and network.twice_differentiable:
        return
    named = "flow" if flow is not None else "network"
    reason = "whose second derivatives jump" if not smooth else "which can be differentiated only once"
    raise ConfigurationError(
        f"loss.fokker_planck={config['loss']['fokker_planck']} needs second derivatives of log p that do not jump, and "
        f"it does not go with {named}={config[named]['name']}, {reason}: set loss.fokker_planck=0 or another flow."
    )


def _compile(network: Network) -> None:
    from torch._functorch import config as functorch

    # The graph of log p is kept after the score is taken from it, which torch forbids where it reuses a graph's memory.
    functorch.donated_buffer = False
    network.compile_for_training()
