"""The multi-scale flow of images: squeeze, transform, let go of half of it, and go on with the rest at half the size.

    y = steps(squeeze(x))             squeeze: (C, H, W) → (4C, H/2, W/2), every 2×2 block becomes a pixel
    (k, h) = halves of y's channels
    z_h = (h − μ(k; e))·e^(−s(k; e))   the split prior, h ~ N(μ, e^(2s)) given k, σ and c
    z_k = the next level of k          at the last level all of y is z

Written with z_h instead of a Gaussian of its own, the split prior is an affine coupling that moves h by what it reads
off k, the base is N(0, I) as a whole, and z has the shape of x. CouplingFlow is this or a flow of vectors, as its
samples ask for. Source: Dinh et al., "Density estimation using Real NVP", 2017; Kingma & Dhariwal, "Glow", 2018.
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
from flowdiff.models.flows.coupling import Affine, Coupling, NetFactory, Transform, alternating, vector_couplings
from flowdiff.models.nn.conv import ResidualConv
from flowdiff.models.nn.mlp import ResidualMLP
from flowdiff.models.nn.recompute import call
from flowdiff.models.nn.residual import NetSettings

Shape = tuple[int, int, int]  # (C, H, W)
GridNetFactory = Callable[[tuple[int, int]], NetFactory]  # the grid (H, W) → what makes nets for images of that size
Form = Literal["auto", "vector", "image"]

MOST_LEVELS = 3  # that levels=null takes
LARGEST_VECTOR = 256  # dimensions up to which form=auto takes an image as a vector


class MultiScale(Flow):
    """`levels` ≥ 1 scales of x (B, C, H, W), H and W multiples of 2^levels; z like x.

    make_steps makes the flows of a level, applied in turn, for the shape (4C, H/2, W/2) that it has there, make_net
    the split priors' nets; |s| of a prior stays below prior_bound (nats). checkpoint: as in Sequential.
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
        self.prior: Coupling | None = None
        self.inner: MultiScale | None = None
        if levels > 1:
            self.prior = Coupling(channels, False, Affine(prior_bound), make_net(grid))
            self.inner = MultiScale((channels // 2, *grid), levels - 1, make_steps, make_net, prior_bound, checkpoint)

    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        y, logdet = self.steps(squeeze(x), cond)
        if self.inner is not None:
            y, of_prior = call(self.prior, y, cond, checkpoint=self.checkpoint)
            k, h = y.chunk(2, dim=1)
            k, of_inner = self.inner(k, cond)
            y, logdet = torch.cat([k, h], dim=1), logdet + of_prior + of_inner
        return unsqueeze(y), logdet

    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        y, logdet = squeeze(z), z.new_zeros(len(z))
        if self.inner is not None:
            k, h = y.chunk(2, dim=1)
            k, of_inner = self.inner.inverse(k, cond)
            y, of_prior = self.prior.inverse(torch.cat([k, h], dim=1), cond)
            logdet = of_inner + of_prior
        y, of_steps = self.steps.inverse(y, cond)
        return unsqueeze(y), logdet + of_steps


def squeeze(x: Tensor) -> Tensor:
    """(B, C, H, W) → (B, 4C, H/2, W/2): a channel's 2×2 blocks become four channels, row by row."""
    # Not by F.pixel_unshuffle: compiled by torch 2.15, the way back through what follows it is wrong.
    blocks = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # (B, C, H/2, 2, W/2, 2)
    return blocks.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)


def unsqueeze(y: Tensor) -> Tensor:
    """The image that squeeze takes to y."""
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
    """n_flows couplings a level, in pairs with checkerboard and with channel masks in turn.

    Squeezed, the black and the white squares of a checkerboard are channels: of the four that a pixel's 2×2 block
    becomes, those on the one and on the other diagonal. The channel masks are random halves, drawn from torch's global
    generator and kept in the state dict.
    """

    def steps(inside: Shape) -> list[Flow]:
        channels, *grid = inside

        def order(pair: int) -> Tensor:
            return checkerboard(channels) if pair % 2 == 0 else torch.randperm(channels)

        return alternating(channels, n_flows, order, transform, make_net(tuple(grid)))

    return MultiScale(shape, levels, steps, make_net, prior_bound, checkpoint)


def conv_nets(nets: NetSettings, heads: int = 0) -> GridNetFactory:
    """Convolutional nets for images of any grid, with self-attention by `heads` if there are any."""
    return lambda grid: partial(ResidualConv, settings=nets, attention_heads=heads, positions=math.prod(grid))


def checkerboard(channels: int) -> Tensor:
    """The order of squeezed channels that puts the black squares first and the white ones second."""
    phases = torch.arange(channels).view(-1, 4)  # each row a 2×2 block: top left, top right, bottom left, bottom right
    return torch.cat([phases[:, [0, 3]].flatten(), phases[:, [1, 2]].flatten()])


def image_levels(name: str, shape: tuple[int, ...], levels: int | None) -> int:
    """How many levels flow=`name` takes on images of `shape`: `levels`, or for None as many as halve evenly.

    None stops at 3, and where a grid of fewer than 2×2 pixels would be left. Raises ConfigurationError, saying what
    works, for samples that are no images and sides that 2^levels does not divide.
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
        return min(most, MOST_LEVELS)
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
    """n_flows couplings by one transform, of vectors over random halves, of images multi-scale with both masks.

    form: `vector` flattens samples of any shape; `image` squeezes (C, H, W), over `levels` scales, with nets that
    attend among the pixels if heads > 0; `auto` is `image` for images of even sides and more than 256 dimensions.
    prior_bound: |log-scale| of an image's split priors stays below it (nats). checkpoint: as in Sequential. The splits
    are drawn from torch's global generator and kept in the state dict.
    Raises ConfigurationError, for flow=`name`, if a vector has fewer than two dimensions or an image's sides cannot be
    halved.
    """

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
        if form == "image" or (form == "auto" and large_even_image(shape)):
            levels = image_levels(name, shape, levels)
            conv = conv_nets(nets, heads)
            self.flow = image_couplings(shape, levels, n_flows, transform, conv, prior_bound, checkpoint)
        else:
            net = partial(ResidualMLP, settings=nets)
            self.flow = vector_couplings(name, shape, n_flows, transform, net, checkpoint)

    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        return self.flow(x, cond)

    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        return self.flow.inverse(z, cond)


def large_even_image(shape: tuple[int, ...]) -> bool:
    """Whether form=auto takes samples of `shape` as images: sides that can be halved, over 256 dimensions."""
    return len(shape) == 3 and shape[1] % 2 == shape[2] % 2 == 0 and math.prod(shape) > LARGEST_VECTOR
