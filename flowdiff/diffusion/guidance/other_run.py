"""A run that guides another: its model, once it fits the other's samples and classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flowdiff.errors import ConfigurationError, RunError
from flowdiff.shapes import times


def other_run(
    load: Callable[[str], Any], run: str | None, shape: tuple[int, ...], num_classes: int | None, guidance: str
) -> Any:
    """The model that `load` finds in the folder `run`.

    shape, num_classes: of the model that it is to guide; guidance: the name of what asks. Raises ConfigurationError
    without a folder, and for a model of samples of another shape or of other classes; an unconditional one fits any.
    RunError where the folder holds no trained run.
    """
    if run is None:
        raise ConfigurationError(
            f"guidance={guidance} needs a run to guide by: give guidance.run=<run folder>, e.g. one below outputs/."
        )
    try:
        guide = load(run)
    except RunError as error:
        raise RunError(f"guidance.run={run} cannot guide: {error}") from error
    theirs = tuple(guide.first_stage.latent_shape)
    if theirs != tuple(shape):
        raise ConfigurationError(
            f"guidance.run={run} is a model of samples of shape {times(theirs)}, and those to be guided are "
            f"{times(shape)}: give a run of the same data."
        )
    if guide.num_classes not in (None, num_classes):
        raise ConfigurationError(
            f"guidance.run={run} knows {guide.num_classes} classes, and the model to be guided "
            f"{num_classes or 'none'}: give a run of the same classes."
        )
    return guide
