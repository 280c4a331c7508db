"""The contract of a loss, and the requirements that losses share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

from pydantic import Field
from torch import Tensor, nn

from flowdiff.diffusion.denoiser import Denoise, Denoiser
from flowdiff.diffusion.other_run import OfData
from flowdiff.diffusion.weightings import Weighting
from flowdiff.models.activations import Activation
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.networks.base import AutoencoderNetwork, Density, ImageTextNetwork, NoisyClassifier
from flowdiff.models.nn.directional import Gradient
from flowdiff.noise import Generators, randn_like
from flowdiff.registry import Requirement, resolve

Share = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True)
class LossOutput:
    """The result of a loss.

    Args:
        loss: per sample, (B,).
        parts: named terms per sample, (B,) each, for logging.
    """

    loss: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


class Student(OfData, Denoise, Protocol):
    """The trained model, as far as a loss measures it."""

    @property
    def sigma_data(self) -> Tensor: ...

    def cond_of(self, label: Tensor) -> Conditioning | None: ...


class Loss(ABC):
    """A training objective: loss(denoiser, x0, sigma, noise, cond) → LossOutput.

    differentiates_score: whether its gradient goes through the score, a second derivative of log p.
    learned: what is trained besides the model, which is in the run's checkpoints and in no model; None for nothing.
    gradient: how the score of a flow is differentiated, for losses that do so.
    fokker_planck: weight λ ≥ 0 of the squared residual of the Fokker–Planck equation; assembly adds it to the loss.
    fokker_planck_share: part of the batch that the residual is computed for, in (0, 1].
    fokker_planck_every: optimiser steps from one with the residual to the next, ≥ 1.
    scales: the smallest and the largest guidance scale that the model is to read in its condition; None for none.
    """

    scales: tuple[float, float] | None = None

    differentiates_score: bool = True
    learned: nn.Module | None = None
    gradient: Gradient = "double_backward"
    fokker_planck: float = 0.0
    fokker_planck_share: float = 0.25
    fokker_planck_every: int = 4

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

    def check(self, model: OfData) -> None:
        """Raise ConfigurationError if the loss does not go with the model that it trains; asked before training."""
        return None

    def numbers(self, model: Student, n: int, seed: int) -> dict[str, float]:
        """Numbers of the finished model that only its loss can measure, on n samples; most losses have none."""
        return {}

    def at(self, step: int) -> Loss:
        """The loss after `step` optimiser steps; most losses do not change."""
        return self


def _has_residual(nodes: Mapping[str, Mapping[str, Any]]) -> bool:
    return nodes["loss"]["fokker_planck"] > 0


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
NEEDS_IMAGES_AND_TEXT = Requirement(
    "network",
    fits=lambda network, node: issubclass(network, ImageTextNetwork),
    reason="this loss trains embeddings of images and captions and the network has none",
    remedy="set network=clip conditioner=word_ids, or another loss",
)
GRADIENT_NEEDS_DENSITY = Requirement(
    "network",
    fits=lambda network, node: issubclass(network, Density),
    reason="this gradient is for the score of a flow, and the network outputs D itself",
    remedy="set loss.gradient=double_backward, which is an ordinary backward pass for such a network",
    when=lambda nodes: nodes["loss"]["gradient"] != "double_backward",
    setting="gradient",
)
PAIRING_IS_NOT_TWEEDIE = Requirement(
    "network",
    fits=lambda network, node: not issubclass(network, Density),
    reason="with paired noise D is not x + σ²∇log p, which is the D of a density",
    remedy="set loss.pairing=independent, or network=unet or mlp",
    when=lambda nodes: nodes["loss"]["pairing"] != "independent",
    setting="pairing",
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
NEEDS_WEIGHTING_OF_LIKELIHOOD = Requirement(
    "weighting",
    fits=lambda weighting, node: issubclass(weighting, Weighting) and weighting.of_likelihood,
    reason="this weighting undoes how the squared error of D grows with σ, and a log-likelihood does not grow so",
    remedy="set weighting=unit, sigma or noise_share, or loss=denoising",
)
RESIDUAL_NEEDS_DENSITY = Requirement(
    "network",
    fits=lambda network, node: issubclass(network, Density),
    reason="the Fokker–Planck equation is one of a density, and the network does not have one",
    remedy="set loss.fokker_planck=0 or network=score_flow",
    when=_has_residual,
    setting="fokker_planck",
)
RESIDUAL_NEEDS_SMOOTH_ACTIVATION = Requirement(
    "activation",
    fits=lambda activation, node: issubclass(activation, Activation) and activation.smooth,
    reason="the Fokker–Planck equation has second derivatives of log p, and those of this activation jump",
    remedy="set loss.fokker_planck=0, or activation=softplus, swish or tanh",
    when=_has_residual,
    setting="fokker_planck",
)
RESIDUAL_IS_NOT_COMPILED = Requirement(
    "accelerator",
    fits=lambda accelerator, node: not node["compile"],
    reason="the residual of the Fokker–Planck equation needs second derivatives, which torch.compile does not give",
    remedy="set loss.fokker_planck=0 or accelerator.compile=false",
    when=_has_residual,
    setting="fokker_planck",
    other_setting="compile",
)
OF_ONE_DIFFUSION = (RESIDUAL_NEEDS_DENSITY, RESIDUAL_NEEDS_SMOOTH_ACTIVATION, RESIDUAL_IS_NOT_COMPILED)
OF_THE_SCORE = (NO_AUTOENCODER, GRADIENT_NEEDS_DENSITY, NO_COMPILED_DOUBLE_BACKWARD, *OF_ONE_DIFFUSION)
