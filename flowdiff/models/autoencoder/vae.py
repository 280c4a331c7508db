"""The convolutional variational autoencoder: residual levels, each half as large as the one before.

encoder   x → patches → levels ↓ → (m, v),    q(ℓ|x) = N(m, e^v)
decoder   ℓ → levels ↑ → patches → a,         p(x|ℓ) by flowdiff/models/autoencoder/decoder_laws.py

A latent is a vector, behind a linear map of the whole smallest level, or a map of its size.
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
    """What both nets share: side of a patch, widths from the patches down, residual blocks per level, norm groups."""

    patch: int
    channels: list[int]
    blocks: int
    norm_groups: int
    activation: Activation


@final
class VAE(Autoencoder):
    """An encoder net, x → (m, v) stacked along the first dimension of the latent, and a decoder net, ℓ → a."""

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


def encoder(shape: tuple[int, int, int], latent_shape: tuple[int, ...], levels: Levels) -> nn.Sequential:
    """x (B, C, H, W) → (m, v), (B, 2·latent_shape[0], …)."""
    channels = levels.channels
    layers: list[nn.Module] = [
        nn.PixelUnshuffle(levels.patch),
        nn.Conv2d(shape[0] * levels.patch**2, channels[0], 3, padding=1),
    ]
    for i, width in enumerate(channels):
        if i > 0:
            layers.append(nn.Conv2d(channels[i - 1], width, 3, stride=2, padding=1))
        layers += [ResidualBlock(width, levels) for _ in range(levels.blocks)]
    layers.append(_normalised(channels[-1], levels))
    if len(latent_shape) == 1:
        smallest = math.prod(smallest_level(shape, levels.patch, channels))
        layers += [nn.Flatten(), nn.Linear(smallest, 2 * latent_shape[0])]
    else:
        layers.append(nn.Conv2d(channels[-1], 2 * latent_shape[0], 3, padding=1))
    return nn.Sequential(*layers)


def decoder(shape: tuple[int, int, int], latent_shape: tuple[int, ...], levels: Levels) -> nn.Sequential:
    """ℓ (B, *latent_shape) → a (B, C, H, W)."""
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
    return nn.Sequential(*layers, _normalised(channels[0], levels), out, nn.PixelShuffle(levels.patch))


def smallest_level(shape: tuple[int, int, int], patch: int, channels: list[int]) -> tuple[int, int, int]:
    """Width, height and breadth of the last level."""
    factor = patch * 2 ** (len(channels) - 1)
    return channels[-1], shape[1] // factor, shape[2] // factor


class ResidualBlock(nn.Module):
    """h + W₂ act(norm(W₁ act(norm(h)))): h (B, width, H, W) → like h."""

    def __init__(self, width: int, levels: Levels):
        super().__init__()
        self.net = nn.Sequential(
            _normalised(width, levels),
            nn.Conv2d(width, width, 3, padding=1),
            _normalised(width, levels),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, h: Tensor) -> Tensor:
        return h + self.net(h)


class _Plain(nn.Module):
    """An activation's plain face as a layer."""

    def __init__(self, activation: Activation):
        super().__init__()
        self.activation = activation

    def forward(self, h: Tensor) -> Tensor:
        return self.activation.plain(h)


def _normalised(width: int, levels: Levels) -> nn.Sequential:
    return nn.Sequential(nn.GroupNorm(levels.norm_groups, width), _Plain(levels.activation))
