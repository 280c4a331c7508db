"""A variational autoencoder as a network; its reconstruction is its denoiser, D = E[x|ℓ] at ℓ = E[ℓ|x].

It is trained to be the first stage of other runs (first_stage=vae), samples from its prior, and does not depend on σ.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field, PositiveInt
from torch import Tensor

from flowdiff.errors import ConfigurationError
from flowdiff.models.activations import Activation
from flowdiff.models.autoencoder.decoder_laws import LAWS, Reconstruction
from flowdiff.models.autoencoder.vae import VAE, Levels, decoder, encoder, smallest_level
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.networks.base import SCALING_IS_SCORE, AutoencoderNetwork, only
from flowdiff.noise import Generators, randn
from flowdiff.registry import register
from flowdiff.shapes import append_dims


@register(
    "network",
    "vae",
    requires=[
        SCALING_IS_SCORE,
        only("conditioner", "none", "an autoencoder does not know classes"),
        only("guidance", "none", "an autoencoder does not denoise, so nothing can be guided"),
        only("first_stage", "identity", "an autoencoder is trained on the data themselves"),
    ],
)
class ConvVAE(AutoencoderNetwork):
    """Convolutional VAE of images in [−1, 1], with a latent vector or a latent map; trained by loss=elbo.

    log p(x) ≥ E_q[log p(x|ℓ)] − KL(q(ℓ|x) ‖ N(0, I))

    Args:
        shape: shape of one image, (C, H, W).
        activation: nonlinearity of the residual blocks.
        patch: side of the patches of pixels that become one position of the first level, ≥ 1.
        channels: width of each level, that of the patches first; every level after the first halves H and W.
        layers_per_block: residual blocks of a level, ≥ 1.
        norm_groups: groups of every group norm, ≥ 1, a divisor of all channels.
        latent_dim: dimension of a latent vector, ≥ 1; None for a latent map.
        latent_channels: channels of a latent map as large as the last level, ≥ 1; None for a latent vector.
        reconstruction: distribution of a pixel given the latent, mse | l1 | bce
            (flowdiff/models/autoencoder/decoder_laws.py).

    Raises:
        ConfigurationError: the samples are not images, or their sides cannot be divided for every level.
        ConfigurationError: not exactly one of latent_dim and latent_channels is given.
        ConfigurationError: the latent has more dimensions than the image, or norm_groups does not divide channels.

    Source: Kingma, Welling, Auto-encoding variational Bayes, 2014.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        activation: Activation,
        *,
        patch: PositiveInt,
        channels: Annotated[list[PositiveInt], Field(min_length=1)],
        layers_per_block: PositiveInt,
        norm_groups: PositiveInt,
        latent_dim: PositiveInt | None,
        latent_channels: PositiveInt | None,
        reconstruction: Reconstruction,
    ):
        super().__init__()
        _check_sizes(shape, patch, channels, norm_groups)
        latent_shape: tuple[int, ...]
        if latent_dim is not None and latent_channels is None:
            latent_shape = (latent_dim,)
        elif latent_channels is not None and latent_dim is None:
            latent_shape = (latent_channels, *smallest_level(shape, patch, channels)[1:])
        else:
            raise ConfigurationError(
                f"network.latent_dim={latent_dim} network.latent_channels={latent_channels} does not describe one "
                "latent: set latent_dim for a vector or latent_channels for a map, and the other to null."
            )
        if math.prod(latent_shape) > math.prod(shape):
            raise ConfigurationError(
                f"a latent of {math.prod(latent_shape)} dimensions is larger than an image of {math.prod(shape)}: "
                "lower network.latent_dim or network.latent_channels, or give network.channels another level."
            )
        levels = Levels(patch, list(channels), layers_per_block, norm_groups, activation)
        self.autoencoder = VAE(
            shape,
            latent_shape,
            encoder(shape, latent_shape, levels),
            decoder(shape, latent_shape, levels),
            LAWS[reconstruction](),
        )

    def forward(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        """(D − x)/σ², shaped like x, with D the reconstruction."""
        return (self.autoencoder.reconstruct(x) - x) / append_dims(sigma**2, x.ndim)

    def from_prior(self, n: int, generator: Generators = None) -> Tensor:
        """n images E[x|ℓ] with ℓ ~ N(0, I), (n, C, H, W); of a sequence of n generators each draws one image."""
        device = next(self.parameters()).device
        return self.autoencoder.decode(randn((n, *self.autoencoder.latent_shape), generator, device=device))


def _check_sizes(shape: tuple[int, ...], patch: int, channels: list[int], norm_groups: int) -> None:
    if len(shape) != 3:
        raise ConfigurationError(
            f"network=vae was given samples of shape {tuple(shape)}, which are not images (C, H, W): take a dataset of "
            "images."
        )
    multiple = patch * 2 ** (len(channels) - 1)
    if shape[1] % multiple or shape[2] % multiple:
        raise ConfigurationError(
            f"network=vae with network.patch={patch} and {len(channels)} levels needs images whose sides are multiples "
            f"of {multiple}, not {shape[1]}×{shape[2]}: give network.channels fewer entries or resize the images."
        )
    if any(width % norm_groups for width in channels):
        raise ConfigurationError(
            f"network.channels={list(channels)} cannot be split into network.norm_groups={norm_groups} groups: give "
            "multiples of norm_groups."
        )
