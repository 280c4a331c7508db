"""The multi-scale flow of images: squeeze, transform, finish half of the channels, continue with the rest at half size.

    y = steps(squeeze(x))             squeeze: (C, H, W) → (4C, H/2, W/2), every 2×2 block becomes a pixel
    (k, h) = halves of y's channels
    z_h = (h − μ(k; e))·e^(−s(k; e))   the split prior, h ~ N(μ, e^(2s)) given k, σ and c
    z_k = the next level of k          at the last level all of y is z

Because it is written with z_h, the split prior is an affine coupling that transforms h with parameters that depend on
k; the base is N(0, I) as a whole, and z has the shape of x. CouplingFlow chooses between this and a flow of vectors.
Source: Dinh, Sohl-Dickstein, Bengio, Density estimation using Real NVP, 2017; Kingma, Dhariwal, Glow, 2018.
"""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.flows.base import Flow, Sequential
from flowdiff.models.flows.coupling import (
    Affine,
    Coupling,
    NetFactory,
    Transform,
    alternating_couplings,
    vector_couplings,
)
from flowdiff.models.nn.conv import ResidualConv
from flowdiff.models.nn.mlp import ResidualMLP
from flowdiff.models.nn.recompute import call
from flowdiff.models.nn.residual import NetSettings

Shape = tuple[int, int, int]  # (C, H, W)
GridNetFactory = Callable[[tuple[int, int]], NetFactory]  # (H, W) → the factory of nets for images of that size
Form = Literal["auto", "vector", "image"]

MAX_LEVELS = 3  # with levels=null
MAX_VECTOR_DIM = 256  # form=auto treats an image of at most this many dimensions as a vector


class MultiScale(Flow):
    """The multi-scale flow of images, level by level.

    y = steps(squeeze(x)),  (k, h) = y,  z_h = (h − μ(k; e))·e^(−s(k; e)),  z_k = the next level of k

    Args:
        shape: shape of one sample, (C, H, W); H and W are multiples of 2^levels.
        levels: scales, ≥ 1.
        make_steps: makes the flows of a level, applied one after the other, for its shape (4C, H/2, W/2).
        make_net: makes the nets of the split priors for the grid of a level.
        prior_bound: bound > 0 of |s| of the split priors, in nats.
        checkpoint: recompute each flow in the backward pass instead of storing its activations.
    """

    def __init__(
        self,
        shape: Shape,
        levels: int,
        make_steps: Callable[[Shape], list[Flow]],
        make_net: GridNetFactory,
        prior_bound: float,
        checkpoint: bool,
    ):
        super().__init__()
        self.checkpoint = checkpoint
        channels, grid = 4 * shape[0], (shape[1] // 2, shape[2] // 2)
        self.steps = Sequential(make_steps((channels, *grid)), checkpoint)
        self.prior: Coupling | None = None  # of a level that is not the last
        self.inner: MultiScale | None = None  # the next level
        if levels > 1:
            self.prior = Coupling(channels, False, Affine(prior_bound), make_net(grid))
            self.inner = MultiScale((channels // 2, *grid), levels - 1, make_steps, make_net, prior_bound, checkpoint)

    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        y, logdet = self.steps(squeeze(x), cond)
        if self.prior is not None and self.inner is not None:
            y, logdet_prior = call(self.prior, y, cond, checkpoint=self.checkpoint)
            k, h = y.chunk(2, dim=1)
            k, logdet_inner = self.inner(k, cond)
            y, logdet = torch.cat([k, h], dim=1), logdet + logdet_prior + logdet_inner
        return unsqueeze(y), logdet

    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        y, logdet = squeeze(z), z.new_zeros(len(z))
        if self.prior is not None and self.inner is not None:
            k, h = y.chunk(2, dim=1)
            k, logdet_inner = self.inner.inverse(k, cond)
            y, logdet_prior = self.prior.inverse(torch.cat([k, h], dim=1), cond)
            logdet = logdet_inner + logdet_prior
        y, logdet_steps = self.steps.inverse(y, cond)
        return unsqueeze(y), logdet + logdet_steps


def squeeze(x: Tensor) -> Tensor:
    """(B, C, H, W) → (B, 4C, H/2, W/2): the 2×2 blocks of a channel become four channels, row by row."""
    # Without F.pixel_unshuffle: compiled by torch 2.15, the gradient of what follows it is wrong.
    blocks = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # (B, C, H/2, 2, W/2, 2)
    return blocks.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)


def unsqueeze(y: Tensor) -> Tensor:
    """The image x with squeeze(x) = y."""
    blocks = y.unflatten(1, (-1, 2, 2))  # (B, C, 2, 2, H/2, W/2)
    return blocks.permute(0, 1, 4, 2, 5, 3).flatten(4).flatten(2, 3)


def image_couplings(
    shape: Shape,
    levels: int,
    n_flows: int,
    transform: Transform,
    make_net: GridNetFactory,
    prior_bound: float,
    checkpoint: bool,
) -> MultiScale:
    """A multi-scale flow with n_flows couplings on each level; pairs use checkerboard and channel masks alternately.

    After a squeeze the black and the white squares of a checkerboard are channels: of the four channels of a pixel's
    2×2 block, those on one diagonal and those on the other. The channel masks are random halves, drawn from torch's
    global generator and kept in the state dict.
    """

    def steps(level_shape: Shape) -> list[Flow]:
        channels, height, width = level_shape

        def order(pair: int) -> Tensor:
            return checkerboard(channels) if pair % 2 == 0 else torch.randperm(channels)

        return alternating_couplings(channels, n_flows, order, transform, make_net((height, width)))

    return MultiScale(shape, levels, steps, make_net, prior_bound, checkpoint)


def conv_nets(nets: NetSettings, heads: int = 0) -> GridNetFactory:
    """The factory of convolutional nets for each grid; with heads > 0 they also have self-attention over the pixels."""
    return lambda grid: partial(ResidualConv, settings=nets, grid=grid, attention_heads=heads)


def checkerboard(channels: int) -> Tensor:
    """The order of squeezed channels that puts the black squares first and the white squares second."""
    phases = torch.arange(channels).view(-1, 4)  # rows: top left, top right, bottom left, bottom right
    return torch.cat([phases[:, [0, 3]].flatten(), phases[:, [1, 2]].flatten()])


def image_levels(name: str, shape: tuple[int, ...], levels: int | None) -> int:
    """Number of levels of flow=`name` on images of `shape`: `levels`, or for None as many as halve the sides evenly.

    None stops at 3, and before a grid would have fewer than 2×2 pixels. Raises ConfigurationError, with the allowed
    values, if the samples are not images or 2^levels does not divide the sides.
    """
    if len(shape) != 3:
        raise ConfigurationError(
            f"flow={name} was given samples of shape {tuple(shape)}, which are not images (C, H, W): for vectors of "
            "two or more dimensions take flow=realnvp, for any take flow=linear_activation."
        )
    height, width = shape[1:]
    most = 0
    while height % 2 ** (most + 1) == 0 and width % 2 ** (most + 1) == 0:
        most += 1
    if levels is None and most > 0:
        while most > 1 and min(height, width) < 2 ** (most + 1):
            most -= 1
        return min(most, MAX_LEVELS)
    needed = levels or 1
    if needed > most:
        multiple = 2**needed
        allowed = " or ".join(map(str, range(1, most + 1)))
        other = f"; {height}×{width} allows flow.levels={allowed}" if most else ""
        raise ConfigurationError(
            f"flow={name} with {needed} level{'s' if needed > 1 else ''} takes images whose sides are multiples of "
            f"2^{needed} = {multiple} ({multiple}, {2 * multiple}, {3 * multiple}, …), not {height}×{width}{other}: "
            f"{'give fewer levels' if most else 'resize or pad the images, or take flow=linear_activation'}."
        )
    return needed


class CouplingFlow(Flow, ABC):
    """Couplings with one transform: over random halves of a vector, or multi-scale with both masks for images.

    z_moved = τ(x_moved; net(x_kept; e))

    The halves are drawn from torch's global generator and kept in the state dict.

    Args:
        name: registered name of the flow, for error messages.
        shape: shape of one sample, (D,) or (C, H, W).
        form: vector | image | auto; auto is image for images with even sides and more than 256 dimensions.
        n_flows: couplings, of each level for images, ≥ 1.
        levels: scales of form=image, ≥ 1; None: as many as the sides allow, at most 3.
        transform: τ.
        nets: settings of the couplings' nets.
        prior_bound: bound > 0 of the log-scales of the split priors of form=image, in nats.
        checkpoint: recompute each coupling in the backward pass instead of storing its activations.
        heads: heads of the attention among the pixels in the nets of form=image; 0: no attention.

    Raises:
        ConfigurationError: a vector has fewer than two dimensions, or the sides of an image cannot be halved.
    """

    takes_gate = True

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        form: Form,
        n_flows: int,
        levels: int | None,
        transform: Transform,
        nets: NetSettings,
        prior_bound: float,
        checkpoint: bool,
        heads: int = 0,
    ):
        super().__init__()
        self.guidance_orders = ("all",) if isinstance(transform, Affine) else ()
        self.flow: Flow
        if form == "image" or (form == "auto" and large_even_image(shape)):
            levels = image_levels(name, shape, levels)
            channels, height, width = shape
            image, conv = (channels, height, width), conv_nets(nets, heads)
            self.shares_weights = True
            self.flow = image_couplings(image, levels, n_flows, transform, conv, prior_bound, checkpoint)
        else:
            net = partial(ResidualMLP, settings=nets)
            self.flow = vector_couplings(name, shape, n_flows, transform, net, checkpoint)

    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        return self.flow(x, cond)

    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        return self.flow.inverse(z, cond)


def large_even_image(shape: tuple[int, ...]) -> bool:
    """Whether form=auto treats samples of `shape` as images: sides that can be halved, over 256 dimensions."""
    return len(shape) == 3 and shape[1] % 2 == shape[2] % 2 == 0 and math.prod(shape) > MAX_VECTOR_DIM
