"""The hybrid flow of images: a coarse image first, then what it leaves out, by couplings that a CNN tells of it.

    (c, d) = Haar(x)            every 2×2 block of a channel: c its sum over 2, d its three differences over 2
    log p(x) = log p(c) + log p(d | c)
    z_d = couplings(d; CNN(c; e), e)      the CNN runs once; every coupling reads its map beside the half it keeps
    z_c = the same of c                   at half the size; the coarsest image by couplings of vectors
    z = Haar⁻¹(z_c, z_d)

e is the embedding of (¼ ln σ, c). The CNN is any function of c: given c, d ↦ z_d is a bijection whatever it says, so
∂(z_c, z_d)/∂(c, d) is block triangular and its determinant that of the couplings alone. The Haar map is orthogonal: its
log-determinant is 0, and it keeps N(0, I) what it is. Base → data undoes c before d.
Source of the coding of details given the coarse image: Yu, Derpanis, Brubaker, "Wavelet Flow: Fast Training of High
Resolution Normalizing Flows", 2020.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from flowdiff.models.activations import Activation
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.flows.base import Flow, Sequential
from flowdiff.models.flows.coupling import Affine, Transform, alternating, vector_couplings
from flowdiff.models.flows.multiscale import Shape, image_levels, squeeze, unsqueeze
from flowdiff.models.nn.conv import ResidualConv
from flowdiff.models.nn.inject import Inject, zero_init
from flowdiff.models.nn.mlp import ResidualMLP
from flowdiff.models.nn.recompute import call
from flowdiff.models.nn.residual import NetSettings
from flowdiff.registry import register
from flowdiff.shapes import sum_except_batch


@register("flow", "hybrid")
class Hybrid(Flow):
    """Affine couplings of an image's details, scale by scale, fed by a CNN over the coarser image coded before them.

    x (B, C, H, W) → z like x, log-det (B,) in nats; H and W multiples of 2^levels, null: as many levels as they allow
    (at most 3). The identity at the start and as smooth as its activation.
    n_flows: couplings of each scale's details, over random halves of their 3C channels, and of the coarsest image, over
    random halves of its numbers; hidden, depth: width and residual blocks of the couplings' nets; features, cnn_depth:
    channels of the CNN's map and its residual blocks, `hidden` wide; scale_bound: |log-scale| of a coupling stays below
    it; inject: how (σ, c) enters the nets and the CNN; checkpoint: compute the couplings and the CNN again in the
    backward pass (flowdiff/models/nn/recompute.py). The splits are drawn from torch's global generator and kept in
    the state dict.
    Raises ConfigurationError for vectors and for sides that cannot be halved `levels` times.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        embed_dim: int,
        activation: Activation,
        token_dim: int = 0,
        *,
        n_flows: PositiveInt,
        levels: PositiveInt | None,
        hidden: PositiveInt,
        depth: PositiveInt,
        features: PositiveInt,
        cnn_depth: PositiveInt,
        scale_bound: PositiveFloat,
        inject: Inject,
        checkpoint: bool,
    ):
        super().__init__()
        levels = image_levels("hybrid", shape, levels)
        channels, height, width = shape
        nets = NetSettings(hidden, depth, embed_dim, activation, inject, token_dim)
        cnn, transform = replace(nets, depth=cnn_depth), Affine(scale_bound)
        coarsest = (channels, height >> levels, width >> levels)
        flow: Flow = Marginals(coarsest, embed_dim, transform)
        if math.prod(coarsest) > 1:
            net = partial(ResidualMLP, settings=nets)
            flow = Sequential([flow, vector_couplings("hybrid", coarsest, n_flows, transform, net, checkpoint)])
        for _ in range(levels):
            details = Sequential(_details(channels, features, n_flows, transform, nets), checkpoint)
            flow = Scale(flow, details, ResidualConv(channels, features, cnn), checkpoint)
        self.flow = flow

    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        return self.flow(x, cond)

    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        return self.flow.inverse(z, cond)


def _details(channels: int, features: int, n_flows: int, transform: Affine, nets: NetSettings) -> list[Flow]:
    """Couplings of the 3·channels details of an image, whose nets also read the image and the map made of it."""
    seen = channels + features
    size = 3 * channels

    def net(kept: int, out: int) -> Seeing:
        return Seeing(ResidualConv(kept + seen, out, nets))

    return alternating(size, n_flows, lambda pair: torch.randperm(size), transform, net)


class Scale(Flow):
    """x (B, C, H, W) as a coarse image (B, C, H/2, W/2), which the flow `coarse` codes, and details given that image.

    The flow `details` is of (B, 3C, H/2, W/2), under a condition that carries the coarse image and `cnn`'s map of it.
    checkpoint: the map, too, is computed again in the backward pass.
    """

    def __init__(self, coarse: Flow, details: Flow, cnn: nn.Module, checkpoint: bool):
        super().__init__()
        self.checkpoint = checkpoint
        self.coarse = coarse
        self.details = details
        self.cnn = cnn

    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        c, d = split(x)
        z_c, of_coarse = self.coarse(c, cond)
        z_d, of_details = self.details(d, self._seen(c, cond))
        return join(z_c, z_d), of_coarse + of_details

    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        z_c, z_d = split(z)
        c, of_coarse = self.coarse.inverse(z_c, cond)
        d, of_details = self.details.inverse(z_d, self._seen(c, cond))
        return join(c, d), of_coarse + of_details

    def _seen(self, c: Tensor, cond: Conditioning) -> Seen:
        features = call(self.cnn, c, cond, checkpoint=self.checkpoint)
        return Seen(cond.vector, cond.tokens, cond.mask, torch.cat([c, features], dim=1))


@dataclass(frozen=True)
class Seen(Conditioning):
    """A condition that carries an image beside what it is: what has been coded already, and what a CNN says of it."""

    image: Tensor | None = None  # (B, C + features, H, W)


class Seeing(nn.Module):
    """A net of images that reads the condition's image beside its input: net([x, image]; e)."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, cond: Seen) -> Tensor:
        return self.net(torch.cat([x, cond.image], dim=1), cond)


class Marginals(Flow):
    """Each number of x (B, *shape) transformed by what is read off e alone: of an affine map, its Gaussian at σ and c.

    The parameters are a linear map of e, 0 at the start.
    """

    def __init__(self, shape: Shape, embed_dim: int, transform: Transform):
        super().__init__()
        self.shape = (*shape, transform.num_params)
        self.transform = transform
        self.steer = zero_init(nn.Linear(embed_dim, math.prod(self.shape)))

    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        z, log_slope = self.transform.forward(x, self._params(cond))
        return z, sum_except_batch(log_slope)

    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        x, log_slope = self.transform.inverse(z, self._params(cond))
        return x, sum_except_batch(log_slope)

    def _params(self, cond: Conditioning) -> Tensor:
        params = self.steer(cond.vector).to(cond.vector.dtype).unflatten(1, self.shape)  # (B, C, H, W, P)
        return params.movedim(-1, 1)


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (B, C, H, W) → its coarse image (B, C, H/2, W/2) and its details (B, 3C, H/2, W/2), an orthogonal map."""
    u = _haar(squeeze(x).unflatten(1, (-1, 4)))
    return u[:, :, 0], u[:, :, 1:].flatten(1, 2)


def join(c: Tensor, d: Tensor) -> Tensor:
    """The image whose coarse image and details these are."""
    u = torch.cat([c[:, :, None], d.unflatten(1, (-1, 3))], dim=2)
    return unsqueeze(_haar(u).flatten(1, 2))


def _haar(u: Tensor) -> Tensor:
    """u (B, C, 4, H, W), 2×2 blocks → half their sums and differences, across, down and crosswise; its own inverse."""
    a, b, c, d = u.unbind(2)
    return torch.stack([a + b + c + d, a - b + c - d, a + b - c - d, a - b - c + d], dim=2) / 2
