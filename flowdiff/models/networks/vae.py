"""A variational autoencoder in the place of a network: what it makes of x is a denoiser, too, D = E[x|ℓ(x)].

It is trained to be the first stage of others (first_stage=vae), draws samples from its prior, and hears nothing of σ.
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
from flowdiff.models.networks.base import AutoencoderNetwork
from flowdiff.noise import Generators, randn
from flowdiff.registry import register
from flowdiff.shapes import append_dims


@register("network", "vae")
class ConvVAE(AutoencoderNetwork):
    """Convolutional VAE of images (C, H, W) ∈ [−1, 1], with a latent vector or a latent map; trained by loss=elbo.

    patch: side of the patches that are one position of the first level; channels: widths of the levels, each after the
    first halving H and W; layers_per_block: residual blocks of a level; norm_groups: groups of every group norm, a
    divisor of all channels; latent_dim: numbers of a latent vector, or latent_channels: of a latent map, as large as
    the last level; the other is null; reconstruction: the law of the image given its latent
    (flowdiff/models/autoencoder/decoder_laws.py).
    Raises ConfigurationError for vectors, sizes that the levels do not divide, a latent with more numbers than the
    image, and settings that do not fit.
    Source: Kingma & Welling, Auto-encoding variational Bayes, 2014.
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
        if (latent_dim is None) == (latent_channels is None):
            raise ConfigurationError(
                f"network.latent_dim={latent_dim} network.latent_channels={latent_channels} is not one latent: give "
                "latent_dim for a vector or latent_channels for a map, and null for the other."
            )
        _, height, width = smallest_level(shape, patch, channels)
        latent_shape = (latent_channels, height, width) if latent_dim is None else (latent_dim,)
        if math.prod(latent_shape) > math.prod(shape):
            raise ConfigurationError(
                f"a latent of {math.prod(latent_shape)} numbers is larger than an image of {math.prod(shape)}: give "
                "network.latent_dim or latent_channels a smaller number, or network.channels another level."
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
        """(D − x)/σ², shaped like x, D the reconstruction."""
        return (self.autoencoder.reconstruct(x) - x) / append_dims(sigma**2, x.ndim)

    def from_prior(self, n: int, generator: Generators = None) -> Tensor:
        """n images E[x|ℓ], ℓ ~ N(0, I), (n, C, H, W); a sequence of n generators draws each from its own."""
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
            f"network=vae with network.patch={patch} and {len(channels)} levels takes images whose sides are multiples "
            f"of {multiple}, not {shape[1]}×{shape[2]}: give network.channels fewer entries or resize the images."
        )
    if any(width % norm_groups for width in channels):
        raise ConfigurationError(
            f"network.channels={list(channels)} cannot be split into network.norm_groups={norm_groups} groups: give "
            "multiples of norm_groups."
        )
