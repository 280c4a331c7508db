"""The health of a score: is D right at every noise level, can it belong to a distribution, and to one diffusion?"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, PositiveInt

from flowdiff.data.base import Dataset
from flowdiff.diffusion.model import ConditionedDenoiser
from flowdiff.evaluation.health.denoising_error import denoising_errors, sigmas_of
from flowdiff.evaluation.health.eigenvalues import smallest_on_trajectories
from flowdiff.evaluation.health.fokker_planck import residual_curve
from flowdiff.evaluation.health.trajectories import trajectories_of
from flowdiff.runs.health import Curve, Health
from flowdiff.runs.records import one_line

log = logging.getLogger(__name__)

ONLY_ONCE = "autograd can differentiate this network only once"


@dataclass(frozen=True)
class HealthSettings:
    """The settings `metrics.health`: the health of a score.

    Args:
        denoising: whether to measure the error of D at every noise level.
        levels: noise levels of the error, ≥ 2; every second of them is one of the Fokker–Planck residual.
        samples: test samples of the error, at most, ≥ 1.
        eigenvalue: whether to measure the smallest eigenvalue of ∂D/∂x on the sampler's trajectories.
        trajectories: number of these trajectories, ≥ 1.
        fokker_planck: whether to measure the residual of the Fokker–Planck equation, of densities.
    """

    denoising: bool
    levels: Annotated[int, Field(ge=2)]
    samples: PositiveInt
    eigenvalue: bool
    trajectories: PositiveInt
    fokker_planck: bool


def measure(denoiser: ConditionedDenoiser, data: Dataset, settings: HealthSettings, batch_size: int) -> Health:
    """What the settings ask for and the model allows; nothing of a network without D: a classifier, an
    autoencoder, embeddings of images and captions, or a consistency function.

    The numbers depend on the model and the data only, not on the batch size: every seed is fixed.

    Args:
        denoiser: the model, in eval mode.
        data: the data set in the model's space.
        settings: what to measure.
        batch_size: samples per batch of the error.
    """
    if denoiser.is_classifier or denoiser.is_autoencoder or not denoiser.can_sample or denoiser.denoiser.is_consistency:
        return Health()
    denoising = eigenvalues = fokker_planck = None
    reasons: dict[str, str] = {}
    steps = trajectories_of(denoiser, settings.trajectories) if settings.denoising or settings.eigenvalue else []
    if settings.denoising:
        denoising = denoising_errors(
            denoiser,
            data,
            levels=settings.levels,
            samples=settings.samples,
            batch_size=batch_size,
            visited=[step.sigma for step in steps],
        )
    if settings.eigenvalue:
        eigenvalues = _differentiating(
            denoiser, "min_eigenvalue", reasons, lambda: smallest_on_trajectories(denoiser, steps)
        )
    if settings.fokker_planck and denoiser.is_density:
        sigmas = sigmas_of(denoiser, settings.levels)[::-2][::-1]  # every second, the largest among them
        fokker_planck = _differentiating(
            denoiser, "fokker_planck", reasons, lambda: residual_curve(denoiser, data, sigmas)
        )
    return Health(denoising, eigenvalues, fokker_planck, reasons)


def _differentiating(
    denoiser: ConditionedDenoiser, metric: str, reasons: dict[str, str], measured: Callable[[], Curve]
) -> Curve | None:
    """A measurement that differentiates the network twice; None, with a reason, if autograd cannot do it."""
    if not denoiser.network.twice_differentiable:
        reasons[metric] = ONLY_ONCE
        return None
    try:
        return measured()
    except RuntimeError as error:  # of an operation without second derivative; it must not cost a run its result
        reasons[metric] = f"it cannot be measured ({one_line(error)})"
        log.warning("no %s: %s", metric, one_line(error))
        return None
