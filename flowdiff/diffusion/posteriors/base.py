"""The contract of a posterior: draws of x0 given y, with a model as the prior."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from flowdiff.diffusion.guidance.base import Guidance
from flowdiff.diffusion.measurements.base import Measurement
from flowdiff.diffusion.model import ConditionedDenoiser
from flowdiff.diffusion.samplers.base import Sampler
from flowdiff.diffusion.samplers.clipping import Clip
from flowdiff.diffusion.samplers.generate import Progress
from flowdiff.diffusion.schedules import Schedule
from flowdiff.errors import ConfigurationError
from flowdiff.registry import name_of


@dataclass(frozen=True)
class Drawing:
    """How many draws are made of each of N measurements, and how the model samples; None is the model's own way.

    Args:
        count: draws of each measurement, ≥ 1.
        seed: draw k of measurement i depends on (seed, i·count + k).
        labels: the class of each measurement; None for the model's classes in turn, or without classes.
        prompts: the text of each measurement; None without text.
        sampler: the steps.
        schedule: the noise levels.
        guidance: a guidance around the model.
        clip: whether D is kept in the range of the data.
        batch_size: samples per batch.
        progress: called with (draws made, draws in all).
    """

    count: int
    seed: int = 0
    labels: Sequence[int] | None = None
    prompts: Sequence[str] | None = None
    sampler: Sampler | None = None
    schedule: Schedule | None = None
    guidance: Guidance | None = None
    clip: Clip | None = None
    batch_size: int = 512
    progress: Progress | None = None


@dataclass(frozen=True)
class Draws:
    """Draws of N measurements, and what is known about them.

    Args:
        x: the draws, (N, count, *shape).
        evaluations: network evaluations for a draw, derivatives included, on average.
        rhat: split R̂ of each measurement's chains, the largest of all dimensions, (N,); None without chains.
        effective: effective number of independent draws of each measurement, the smallest of all dimensions, (N,).
        acceptance: share of accepted proposals, (N,).
    """

    x: Tensor
    evaluations: float
    rhat: Tensor | None = None
    effective: Tensor | None = None
    acceptance: Tensor | None = None


class Posterior(ABC):
    """A way to draw from p(x0|y) ∝ p(x0)·N(y; A·x0, σ_y²·I).

    Args:
        measurement: A and σ_y.
    """

    def __init__(self, measurement: Measurement):
        self.measurement = measurement

    def check(self, model: ConditionedDenoiser, guidance: Guidance) -> None:
        """Raise ConfigurationError if it cannot draw from this model in this guidance, before anything is drawn."""
        if not model.can_sample or model.is_autoencoder:
            raise ConfigurationError(
                f"posterior={name_of('posterior', self)} needs a model that denoises, and network="
                f"{type(model.network).__name__} does not: take a run of another network."
            )
        if not model.first_stage.is_identity:
            raise ConfigurationError(
                f"posterior={name_of('posterior', self)} measures what the model denoises, and this model works in the "
                "latents of an autoencoder; a measurement of pixels is not linear in latents: take a run of pixels."
            )
        if model.hinting is not None:
            raise ConfigurationError(
                f"posterior={name_of('posterior', self)} draws from p(x|y), and this model draws from p(x|h) for "
                "hints h that a measurement does not have: take the run that it controls."
            )

    @abstractmethod
    def draw(self, model: ConditionedDenoiser, y: Tensor, drawing: Drawing) -> Draws:
        """Draws of each of N measurements y (N, …), shaped as A·x0."""
