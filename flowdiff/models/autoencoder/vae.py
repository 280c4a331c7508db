"""The convolutional variational autoencoder: residual levels, each with half the height and width of the one before.

encoder   x → patches → levels ↓ → (m, v),    q(ℓ|x) = N(m, e^v)
decoder   ℓ → levels ↑ → patches → a,         p(x|ℓ) by flowdiff/models/autoencoder/decoder_laws.py

A latent is a vector, a linear map of the whole last level, or a map as large as the last level.
"""

from __future__ import annotations

import math
from typing import NamedTuple, final

from torch import Tensor, nn

from flowdiff.models.activations import Activation
from flowdiff.models.autoencoder.base import Autoencoder
from flowdiff.models.autoencoder.decoder_laws import DecoderLaw
from flowdiff.models.autoencoder.posterior import Posterior


class Levels(NamedTuple):
    """Settings shared by encoder and decoder."""

    patch: int  # side of a patch in pixels
    channels: list[int]  # width of each level, that of the patches first
    blocks: int  # residual blocks per level
    norm_groups: int  # groups of every group norm
    activation: Activation


@final
class VAE(Autoencoder):
    """A variational autoencoder from two nets.

    Args:
        shape: shape of one image, (C, H, W).
        latent_shape: shape of one latent.
        encoder: x → (m, v), concatenated along the first dimension of the latent.
        decoder: ℓ → a.
        law: p(x|ℓ) as a function of a.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        latent_shape: tuple[int, ...],
        encoder: nn.Module,
        decoder: nn.Module,
        law: DecoderLaw,
    ):
        super().__init__(shape, latent_shape, law)
        self.encoder = encoder
        self.decoder = decoder

    def posterior(self, x: Tensor) -> Posterior:
        return Posterior.of(*self.encoder(x).chunk(2, dim=1))

    def decoded(self, latent: Tensor) -> Tensor:
        return self.decoder(latent)


def encoder(shape: tuple[int, ...], latent_shape: tuple[int, ...], levels: Levels) -> nn.Sequential:
    """The encoder net: x (B, C, H, W) → (m, v), (B, 2·latent_shape[0], …)."""
    channels = levels.channels
    layers: list[nn.Module] = [
        nn.PixelUnshuffle(levels.patch),
        nn.Conv2d(shape[0] * levels.patch**2, channels[0], 3, padding=1),
    ]
    for i, width in enumerate(channels):
        if i > 0:
            layers.append(nn.Conv2d(channels[i - 1], width, 3, stride=2, padding=1))
        layers += [ResidualBlock(width, levels) for _ in range(levels.blocks)]
    layers.append(_norm_act(channels[-1], levels))
    if len(latent_shape) == 1:
        smallest = math.prod(smallest_level(shape, levels.patch, channels))
        layers += [nn.Flatten(), nn.Linear(smallest, 2 * latent_shape[0])]
    else:
        layers.append(nn.Conv2d(channels[-1], 2 * latent_shape[0], 3, padding=1))
    return nn.Sequential(*layers)


def decoder(shape: tuple[int, ...], latent_shape: tuple[int, ...], levels: Levels) -> nn.Sequential:
    """The decoder net: ℓ (B, *latent_shape) → a (B, C, H, W)."""
    channels = levels.channels
    layers: list[nn.Module] = []
    if len(latent_shape) == 1:
        smallest = smallest_level(shape, levels.patch, channels)
        layers += [nn.Linear(latent_shape[0], math.prod(smallest)), nn.Unflatten(1, smallest)]
    else:
        layers.append(nn.Conv2d(latent_shape[0], channels[-1], 3, padding=1))
    for i, width in reversed(list(enumerate(channels))):
        layers += [ResidualBlock(width, levels) for _ in range(levels.blocks)]
        if i > 0:
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width, channels[i - 1], 3, padding=1)]
    out = nn.Conv2d(channels[0], shape[0] * levels.patch**2, 3, padding=1)
    return nn.Sequential(*layers, _norm_act(channels[0], levels), out, nn.PixelShuffle(levels.patch))


def smallest_level(shape: tuple[int, ...], patch: int, channels: list[int]) -> tuple[int, int, int]:
    """Channels, height and width of the last level, for images of shape (C, H, W)."""
    factor = patch * 2 ** (len(channels) - 1)
    return channels[-1], shape[1] // factor, shape[2] // factor


class ResidualBlock(nn.Module):
    """One residual block of h (B, width, H, W).

    h ← h + W₂ act(norm(W₁ act(norm(h))))
    """

    def __init__(self, width: int, levels: Levels):
        super().__init__()
        self.net = nn.Sequential(
            _norm_act(width, levels),
            nn.Conv2d(width, width, 3, padding=1),
            _norm_act(width, levels),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, h: Tensor) -> Tensor:
        return h + self.net(h)


class _ActivationLayer(nn.Module):
    """The plain form of an activation as a layer."""

    def __init__(self, activation: Activation):
        super().__init__()
        self.activation = activation

    def forward(self, h: Tensor) -> Tensor:
        return self.activation.plain(h)


def _norm_act(width: int, levels: Levels) -> nn.Sequential:
    return nn.Sequential(nn.GroupNorm(levels.norm_groups, width), _ActivationLayer(levels.activation))
