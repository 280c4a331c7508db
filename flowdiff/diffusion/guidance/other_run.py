"""The model of another run that guides: it must fit the samples, the latent space and the classes of the guided one."""

from __future__ import annotations

from collections.abc import Callable

from flowdiff.diffusion.guidance.base import Model
from flowdiff.diffusion.other_run import check_classes, check_fits
from flowdiff.errors import ConfigurationError, RunError


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
    named, role = f"guidance.run={run}", "the model to be guided"
    check_fits(guide, named, guided, role)
    if guide.num_classes is not None:
        check_classes(guide, named, guided, role)
    return guide
