"""The model of another run that guides: it must fit the samples, the latent space and the classes of the guided one."""

from __future__ import annotations

from collections.abc import Callable

from flowdiff.diffusion.guidance.base import Model
from flowdiff.errors import ConfigurationError, RunError
from flowdiff.shapes import times


def other_run(load: Callable[[str], Model], run: str | None, guided: Model, guidance: str) -> Model:
    """The model in the folder `run`, checked to fit the model that it guides. An unconditional one fits any classes.

    Args:
        load: run folder → its model.
        run: the folder.
        guided: the model to be guided.
        guidance: the name of the guidance, for its errors.

    Raises:
        ConfigurationError: no folder, or a model of other samples, of another latent space or of other classes.
        RunError: the folder does not hold a trained run.
    """
    if run is None:
        raise ConfigurationError(
            f"guidance={guidance} needs a run that guides: give guidance.run=<run folder>, e.g. one below outputs/."
        )
    try:
        guide = load(run)
    except RunError as error:
        raise RunError(f"guidance.run={run} cannot guide: {error}") from error
    ours, theirs = guided.first_stage, guide.first_stage
    if tuple(theirs.latent_shape) != tuple(ours.latent_shape):
        raise ConfigurationError(
            f"guidance.run={run} is a model of samples of shape {times(theirs.latent_shape)}, and the samples to be "
            f"guided have shape {times(ours.latent_shape)}: give a run of the same data."
        )
    if not ours.shares_space(theirs):
        raise ConfigurationError(
            f"guidance.run={run} works in the latents of another autoencoder than the model to be guided: give a run "
            "with the same first stage."
        )
    if guide.num_classes not in (None, guided.num_classes):
        raise ConfigurationError(
            f"guidance.run={run} knows {guide.num_classes} classes, and the model to be guided "
            f"{guided.num_classes or 'none'}: give a run of the same classes."
        )
    return guide
