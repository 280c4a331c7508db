"""The autoencoder that another run has trained (network=vae loss=elbo) as the first stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from pydantic import PositiveInt

from flowdiff.errors import ConfigurationError, RunError
from flowdiff.models.first_stage.base import AutoencoderStage, LoadedModel, Precision, Scale
from flowdiff.models.networks.base import AutoencoderNetwork, Density
from flowdiff.registry import Requirement, register
from flowdiff.shapes import times


@final
@register(
    "first_stage",
    "vae",
    requires=[
        Requirement(
            "network",
            fits=lambda network, node: issubclass(network, Density),
            reason="an autoencoder that is trained along needs a prior with a log-density",
            remedy="set network=score_flow or first_stage.train=false",
            when=lambda nodes: bool(nodes["first_stage"]["train"]),
            setting="train",
        )
    ],
)
class VAEFirstStage(AutoencoderStage):
    """The VAE that another run has trained, with its averaged weights, frozen or trained further.

    z = (ℓ − shift)·scale

    Args:
        shape: shape of one image, (C, H, W).
        load: run folder → its trained model.
        run: run folder of network=vae; required.
        train: whether to train the VAE further, together with the flow that is its prior
            (flowdiff/diffusion/losses/learned_prior.py).
        scale: channel | global: measured, so that the training latents have mean 0 and standard deviation 1, per
            channel or overall; none: z = ℓ.
        chunk_size: images encoded or decoded at once, ≥ 1; it changes only speed and memory.
        precision: of weights and computation, float32 | float16 | bfloat16; the results are float32.
        cache_dir: folder of the encoded data.

    Raises:
        ConfigurationError: no run is given, its network is not an autoencoder, or its images have another shape.
        ConfigurationError: train=true with half precision.
        RunError: the folder does not contain a trained run.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        load: Callable[[str], LoadedModel],
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
                "first_stage=vae needs the run that trained it: set first_stage.run=<run folder>, e.g. of "
                "`python train.py experiment=vae_digits`."
            )
        if train and precision != "float32":
            raise ConfigurationError(
                f"first_stage.train=true does not work with first_stage.precision={precision}: the steps of an "
                "optimizer are too small for half precision; set first_stage.precision=float32."
            )
        try:
            network = load(run).network
        except RunError as error:
            raise RunError(f"first_stage.run={run} cannot be a first stage: {error}") from error
        if not isinstance(network, AutoencoderNetwork):
            raise ConfigurationError(
                f"first_stage.run={run} is not an autoencoder: give a run of network=vae, e.g. of "
                "`python train.py experiment=vae_digits`."
            )
        theirs = network.autoencoder.shape
        if theirs != tuple(shape):
            raise ConfigurationError(
                f"first_stage.run={run} is an autoencoder of images of shape {times(theirs)}, and images of the "
                f"dataset have shape {times(shape)}: give a run with images of the same shape."
            )
        super().__init__(
            network.autoencoder,
            train=train,
            scale=scale,
            chunk_size=chunk_size,
            precision=precision,
            cache_dir=cache_dir,
        )
