"""The autoencoder of another run, `python train.py network=vae loss=elbo`, as the first stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

from pydantic import PositiveInt

from flowdiff.errors import ConfigurationError, RunError
from flowdiff.models.first_stage.base import AutoencoderStage, Precision, Scale
from flowdiff.registry import register
from flowdiff.shapes import times


@final
@register("first_stage", "vae")
class VAEFirstStage(AutoencoderStage):
    """The VAE that a run has trained, with its averaged weights.

    load: a run folder -> its model.  run: the folder.  train: whether it is trained on, along with the flow that is its
    prior (flowdiff/losses.py).  scale, chunk_size, precision, cache_dir: of AutoencoderStage.
    Raises ConfigurationError without a folder, for a run of another network, for one of images of another shape, and
    for one to be trained in half precision; RunError where the folder holds no trained run.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        load: Callable[[str], Any],
        *,
        run: str | None,
        train: bool,
        scale: Scale,
        chunk_size: PositiveInt,
        precision: Precision,
        cache_dir: str,
    ):
        if run is None:
            raise ConfigurationError(
                "first_stage=vae needs the run that trained it: give first_stage.run=<run folder>, e.g. of "
                "`python train.py experiment=vae_digits`."
            )
        if train and precision != "float32":
            raise ConfigurationError(
                f"first_stage.train=true first_stage.precision={precision} does not go together: half precision is too "
                "coarse for an optimiser's steps; take first_stage.precision=float32."
            )
        try:
            network = load(run).network
        except RunError as error:
            raise RunError(f"first_stage.run={run} cannot be a first stage: {error}") from error
        if not hasattr(network, "autoencoder"):
            raise ConfigurationError(
                f"first_stage.run={run} is no autoencoder: give a run of network=vae, e.g. of "
                "`python train.py experiment=vae_digits`."
            )
        check_shape(f"first_stage.run={run}", network.autoencoder.shape, shape)
        super().__init__(
            network.autoencoder,
            train=train,
            scale=scale,
            chunk_size=chunk_size,
            precision=precision,
            cache_dir=cache_dir,
        )


def check_shape(which: str, theirs: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """Raise ConfigurationError for an autoencoder, told of as `which`, of other images than those of `shape`."""
    if tuple(theirs) != tuple(shape):
        raise ConfigurationError(
            f"{which} is an autoencoder of images of shape {times(theirs)}, and those of the dataset are "
            f"{times(shape)}: give one of the same shape."
        )
