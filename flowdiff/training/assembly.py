"""From a config to the parts of a run: everything is built here that components can refuse each other for.

Lightning is not needed for it: sampling, and checking the jobs of a sweep, are spared the seconds of importing it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flowdiff.data.base import DataModule
from flowdiff.diffusion.denoiser import Denoiser
from flowdiff.diffusion.losses.base import Loss
from flowdiff.diffusion.losses.learned_prior import LearnedPrior
from flowdiff.diffusion.model import ConditionedDenoiser
from flowdiff.errors import ConfigurationError
from flowdiff.evaluation.metrics import Metrics
from flowdiff.models.flows.base import Flow
from flowdiff.registry import create
from flowdiff.training.optimizers import Optimizer


class Parts(NamedTuple):
    """The model and what trains it."""

    denoiser: ConditionedDenoiser
    loss: Loss
    sigma_sampler: Callable[..., Tensor]
    optimizer: Optimizer
    data: DataModule


def assemble(config: Mapping[str, Any]) -> Parts:
    """Build the parts that a checked, resolved config describes; touches no data file.

    Raises ConfigurationError where components do not fit each other or the data's shape.
    """
    data = create("dataset", config["dataset"])
    conditioner = create("conditioner", config["conditioner"], num_classes=data.num_classes)
    first_stage = create("first_stage", config["first_stage"], shape=data.shape, load=_load)
    shape = first_stage.latent_shape
    parts: dict[str, Any] = {
        "shape": shape,
        "cond_dim": conditioner.dim,
        "token_dim": conditioner.token_dim,
        "num_classes": data.num_classes,
    }
    for group in ("activation", "whitening", "flow"):  # each may be taken by the next, and all by the network
        if group in config:
            parts[group] = create(group, config[group], **parts, embed_dim=config["network"].get("embed_dim"))
    weighting = {"weighting": create("weighting", config["weighting"])} if "weighting" in config else {}
    loss = create("loss", config["loss"], **weighting)
    network = create("network", config["network"], **parts, gradient=loss.gradient)
    if config["accelerator"]["compile"]:
        _compile(network)
    if "flow" in parts and loss.differentiates_score:
        _check_derivatives(parts["flow"], config["flow"]["name"], loss.gradient)
    if first_stage.trained:
        loss = LearnedPrior(loss, first_stage, create("schedule", config["schedule"]).sigma_min)
    return Parts(
        ConditionedDenoiser(
            Denoiser(network, create("scaling", config["scaling"])),
            conditioner,
            first_stage,
            data.values.to_uint8,  # not the data's own: the weight average deep-copies what the module holds
            {group: config[group] for group in ("sampler", "schedule", "guidance", "sigma_sampler")},
        ),
        loss,
        create("sigma_sampler", config["sigma_sampler"]),
        create("optimizer", config["optimizer"]),
        data,
    )


def rehearse(config: Mapping[str, Any]) -> tuple[Parts, Metrics]:
    """All of a run but its trainer, without touching data or disk: the parts, and what will measure them.

    Raises ConfigurationError where components do not fit each other or the data's shape.
    """
    parts = assemble(config)
    parts.denoiser.guided(config["guidance"])  # which may read another run
    metrics = create("metrics", config["metrics"], data=parts.data)
    metrics.check(parts.denoiser)
    return parts, metrics


def _load(run: str) -> ConditionedDenoiser:
    from flowdiff import api  # upwards: an autoencoder's run is assembled like any other

    return api.load(run)


def _check_derivatives(flow: Flow, name: str, gradient: str) -> None:
    if gradient == "double_backward" and not flow.twice_differentiable:
        raise ConfigurationError(
            f"this loss differentiates the score, and flow={name} can be differentiated only once: take "
            "loss.gradient=directional, loss=nll or another flow."
        )
    if gradient == "forward_mode" and not flow.forward_differentiable:
        raise ConfigurationError(
            f"loss.gradient=forward_mode does not go with flow={name}, whose operations torch cannot differentiate "
            "forward: take loss.gradient=directional."
        )


def _compile(network: nn.Module) -> None:
    from torch._functorch import config as functorch

    # The graph of log p is kept after the score is taken from it; where torch reuses a graph's memory it forbids that.
    functorch.donated_buffer = False
    for method in ("log_prob", "class_log_prob"):  # whose gradient the network's output is
        if hasattr(network, method):
            setattr(network, method, torch.compile(getattr(network, method)))
            return
    network.compile()
