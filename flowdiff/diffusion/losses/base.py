"""The contract of a loss, and the requirements that losses share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from flowdiff.diffusion.denoiser import Denoiser
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.networks.base import AutoencoderNetwork, Density, NoisyClassifier
from flowdiff.models.nn.directional import Gradient
from flowdiff.noise import Generators, randn_like
from flowdiff.registry import Requirement, resolve


@dataclass(frozen=True)
class LossOutput:
    """The result of a loss.

    Args:
        loss: per sample, (B,).
        parts: named terms per sample, (B,) each, for logging.
    """

    loss: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


class Loss(ABC):
    """A training objective: loss(denoiser, x0, sigma, noise, cond) → LossOutput.

    differentiates_score: whether its gradient goes through the score, a second derivative of log p.
    gradient: how the score of a flow is differentiated, for losses that do so.
    """

    differentiates_score: bool = True
    gradient: Gradient = "double_backward"

    @abstractmethod
    def __call__(
        self, denoiser: Denoiser, x0: Tensor, sigma: Tensor, noise: Tensor, cond: Conditioning | None = None
    ) -> LossOutput:
        """The loss of each sample.

        Args:
            denoiser: the model in training.
            x0: clean samples, (B, …).
            sigma: noise levels in data units, (B,) > 0.
            noise: noise from `draw_noise`, like x0 unless the loss says otherwise.
            cond: the condition of B samples, or None.
        """

    def draw_noise(self, x0: Tensor, generator: Generators = None) -> Tensor:
        """The noise that this loss trains with: N(0, I) like x0."""
        return randn_like(x0, generator)

    def at(self, step: int) -> Loss:
        """The loss after `step` optimiser steps; most losses do not change."""
        return self


def _trains_network(nodes: Mapping[str, Mapping[str, Any]], kind: type) -> bool:
    return issubclass(resolve("network", nodes["network"]["name"]), kind)


NEEDS_DENSITY = Requirement(
    "network",
    fits=lambda network, node: issubclass(network, Density),
    reason="this loss needs a log-density and the network does not have one",
    remedy="set network=score_flow, or loss=denoising or score_matching",
)
NEEDS_CLASSIFIER = Requirement(
    "network",
    fits=lambda network, node: issubclass(network, NoisyClassifier),
    reason="this loss trains a classifier and the network is not one",
    remedy="set network=classifier conditioner=one_hot, or loss=denoising",
)
NEEDS_AUTOENCODER = Requirement(
    "network",
    fits=lambda network, node: issubclass(network, AutoencoderNetwork),
    reason="this loss trains an autoencoder and the network is not one",
    remedy="set network=vae, or another loss",
)
NO_AUTOENCODER = Requirement(
    "network",
    fits=lambda network, node: not issubclass(network, AutoencoderNetwork),
    reason="an autoencoder is trained by loss=elbo only",
    remedy="set loss=elbo, or another network",
)
GRADIENT_NEEDS_DENSITY = Requirement(
    "network",
    fits=lambda network, node: issubclass(network, Density),
    reason="this gradient is for the score of a flow, and the network outputs D itself",
    remedy="set loss.gradient=double_backward, which is an ordinary backward pass for such a network",
    when=lambda nodes: nodes["loss"]["gradient"] != "double_backward",
    setting="gradient",
)
NO_COMPILED_DOUBLE_BACKWARD = Requirement(
    "accelerator",
    fits=lambda accelerator, node: not node["compile"],
    reason="torch.compile cannot differentiate the score of a flow this way",
    remedy="set loss=nll, loss.gradient=directional or accelerator.compile=false",
    when=lambda nodes: nodes["loss"]["gradient"] != "directional" and _trains_network(nodes, Density),
    setting="gradient",
    other_setting="compile",
)
OF_THE_SCORE = (NO_AUTOENCODER, GRADIENT_NEEDS_DENSITY, NO_COMPILED_DOUBLE_BACKWARD)
