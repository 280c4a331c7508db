"""The autoencoder of another run, `python train.py network=vae loss=elbo`, as the first stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

from pydantic import PositiveInt

from flowdiff.errors import ConfigurationError, RunError
from flowdiff.first_stage.base import FrozenAutoencoder, Precision, Scale
from flowdiff.registry import register


@final
@register("first_stage", "vae")
class VAEFirstStage(FrozenAutoencoder):
    """The VAE that a run has trained, with its averaged weights.

    load: a run folder -> its model.  run: the folder.  scale, chunk_size, precision, cache_dir: of FrozenAutoencoder.
    Raises ConfigurationError without a folder, for a run of another network, and for one of images of another shape;
    RunError where the folder holds no trained run.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        load: Callable[[str], Any],
        *,
        run: str | None,
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
            network.autoencoder, scale=scale, chunk_size=chunk_size, precision=precision, cache_dir=cache_dir
        )


def check_shape(which: str, theirs: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """Raise ConfigurationError for an autoencoder, told of as `which`, of other images than those of `shape`."""
    if tuple(theirs) != tuple(shape):
        raise ConfigurationError(
            f"{which} is an autoencoder of images of shape {_times(theirs)}, and those of the dataset are "
            f"{_times(shape)}: give one of the same shape."
        )


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
