"""What the model of another run must have in common with a model that uses it: samples, latent space and classes."""

from __future__ import annotations

from typing import Protocol

from flowdiff.errors import ConfigurationError
from flowdiff.models.first_stage.base import FirstStage
from flowdiff.shapes import times


class OfData(Protocol):
    """What a model says about its data: the first stage and the number of classes."""

    @property
    def first_stage(self) -> FirstStage: ...

    @property
    def num_classes(self) -> int | None: ...


def check_fits(other: OfData, named: str, model: OfData, role: str) -> None:
    """Raise ConfigurationError unless the model of another run is one of the same samples in the same latent space.

    Args:
        other: the model of the other run.
        named: the run as the command line names it, e.g. guidance.run=outputs/weak.
        model: the model that uses it.
        role: the model that uses it in words, e.g. "the model to be guided".
    """
    ours, theirs = model.first_stage, other.first_stage
    if tuple(theirs.latent_shape) != tuple(ours.latent_shape):
        raise ConfigurationError(
            f"{named} is a model of samples of shape {times(theirs.latent_shape)}, and {role} is one of samples of "
            f"shape {times(ours.latent_shape)}: give a run of the same data."
        )
    if not ours.shares_space(theirs):
        raise ConfigurationError(
            f"{named} works in the latents of another autoencoder than {role}: give a run with the same first stage."
        )


def check_classes(other: OfData, named: str, model: OfData, role: str) -> None:
    """Raise ConfigurationError unless the model of another run knows the same classes."""
    if other.num_classes != model.num_classes:
        raise ConfigurationError(
            f"{named} knows {other.num_classes or 'no'} classes, and {role} {model.num_classes or 'none'}: give a run "
            "of the same classes."
        )
