"""The hybrid flow of images: the coarse image first, then its details, by couplings that read a CNN's map of it.

    (c, d) = Haar(x)            of every 2×2 block of a channel, c is its sum / 2 and d its three differences / 2
    log p(x) = log p(c) + log p(d | c)
    z_d = couplings(d; CNN(c; e), e)      the CNN runs once; every coupling reads its map next to its kept half
    z_c = the same for c                  at half the size; the coarsest image by couplings of vectors
    z = Haar⁻¹(z_c, z_d)

e is the embedding of (¼ ln σ, c). The CNN may be any function of c: for a fixed c, d ↦ z_d is a bijection, so
∂(z_c, z_d)/∂(c, d) is block triangular and its determinant is that of the couplings alone. The Haar map is orthogonal:
its log-determinant is 0, and it maps N(0, I) to itself. Base → data inverts c before d.
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
from flowdiff.models.flows.coupling import Affine, Transform, alternating_couplings, inverse_of, vector_couplings
from flowdiff.models.flows.gate import gated
from flowdiff.models.flows.multiscale import image_levels, squeeze, unsqueeze
from flowdiff.models.flows.steered import Steered
from flowdiff.models.nn.conv import ResidualConv
from flowdiff.models.nn.inject import Inject
from flowdiff.models.nn.mlp import ResidualMLP
from flowdiff.models.nn.recompute import call
from flowdiff.models.nn.residual import NetSettings
from flowdiff.registry import register
from flowdiff.shapes import sum_except_batch


@register("flow", "hybrid")
class Hybrid(Flow):
    """Affine couplings of the details of an image, scale by scale, that read a CNN's map of the coarser image.

    log p(x) = log p(c) + log p(d | c),  c the image at half the size, d its details

    The flow starts as the identity and is as smooth as its activation. The halves of the couplings are drawn from
    torch's global generator and kept in the state dict.

    Args:
        shape: shape of one sample, (C, H, W); H and W are multiples of 2^levels.
        embed_dim: width of the embedding e = cond.vector (B, embed_dim).
        activation: nonlinearity of the nets and of the CNN.
        token_dim: width of cond.tokens (B, L, token_dim), read by inject=cross_attention; 0 without tokens.
        n_flows: couplings of the 3C detail channels of each scale and of the numbers of the coarsest image, ≥ 1.
        levels: scales, ≥ 1, each halves the sides; None: as many as the sides allow, at most 3.
        hidden: width of the nets of the couplings and of the CNN, ≥ 1.
        depth: residual blocks of each coupling's net, ≥ 1.
        features: channels of the CNN's map, ≥ 1.
        cnn_depth: residual blocks of the CNN, ≥ 1.
        scale_bound: bound > 0 of the log-scale of a coupling, in nats.
        inject: how (σ, c) enters the nets and the CNN, film | concat | cross_attention.
        checkpoint: recompute the couplings and the CNN in the backward pass instead of storing their activations.

    Raises:
        ConfigurationError: the samples are vectors, or their sides cannot be halved `levels` times.

    Source: Yu, Derpanis, Brubaker, Wavelet Flow: Fast Training of High Resolution Normalizing Flows, 2020.
    """

    takes_gate = True
    shares_weights = True
    guidance_orders = ("all",)

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
        flow: Flow = ElementwiseFlow(coarsest, embed_dim, transform)
        if math.prod(coarsest) > 1:
            net = partial(ResidualMLP, settings=nets)
            flow = Sequential([flow, vector_couplings("hybrid", coarsest, n_flows, transform, net, checkpoint)])
        for level in reversed(range(levels)):
            grid = (height >> (level + 1), width >> (level + 1))
            details = Sequential(_detail_couplings(channels, features, n_flows, transform, nets, grid), checkpoint)
            flow = CoarseToFine(flow, details, ResidualConv(channels, features, cnn, grid), checkpoint)
        self.flow = flow

    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        return self.flow(x, cond)

    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        return self.flow.inverse(z, cond)


def _detail_couplings(
    channels: int, features: int, n_flows: int, transform: Affine, nets: NetSettings, grid: tuple[int, int]
) -> list[Flow]:
    """Couplings of the 3·channels details of an image on a grid; their nets read the coarse image and its CNN map."""
    image_channels = channels + features
    size = 3 * channels

    def net(kept: int, out: int) -> ImageConditionedNet:
        return ImageConditionedNet(ResidualConv(kept + image_channels, out, nets, grid))

    return alternating_couplings(size, n_flows, lambda pair: torch.randperm(size), transform, net)


class CoarseToFine(Flow):
    """One scale: x (B, C, H, W) as a coarse image (B, C, H/2, W/2) and its details (B, 3C, H/2, W/2) given that image.

    log|det| = log|det ∂z_c/∂c| + log|det ∂z_d/∂d|

    Args:
        coarse: the flow of the coarse image.
        details: the flow of the details, whose condition is an ImageConditioning.
        cnn: makes its map of the coarse image, (B, C, H/2, W/2) → (B, features, H/2, W/2).
        checkpoint: recompute the map in the backward pass instead of storing its activations.
    """

    def __init__(self, coarse: Flow, details: Flow, cnn: nn.Module, checkpoint: bool):
        super().__init__()
        self.checkpoint = checkpoint
        self.coarse = coarse
        self.details = details
        self.cnn = cnn

    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        c, d = haar_split(x)
        z_c, logdet_coarse = self.coarse(c, cond)
        z_d, logdet_details = self.details(d, self._with_image(c, cond))
        return haar_join(z_c, z_d), logdet_coarse + logdet_details

    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        z_c, z_d = haar_split(z)
        c, logdet_coarse = self.coarse.inverse(z_c, cond)
        d, logdet_details = self.details.inverse(z_d, self._with_image(c, cond))
        return haar_join(c, d), logdet_coarse + logdet_details

    def _with_image(self, c: Tensor, cond: Conditioning) -> ImageConditioning:
        features = call(self.cnn, c, cond, checkpoint=self.checkpoint)
        return ImageConditioning(**vars(cond), image=torch.cat([c, features], dim=1))


@dataclass(frozen=True)
class ImageConditioning(Conditioning):
    """A condition with an image: the coarse image, which is coded already, and the CNN's map of it."""

    image: Tensor | None = None  # (B, C + features, H, W)


class ImageConditionedNet(nn.Module):
    """A net of images that also reads the image of its condition: net([x, image]; e)."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, cond: ImageConditioning) -> Tensor:
        assert cond.image is not None
        return self.net(torch.cat([x, cond.image], dim=1), cond)


class ElementwiseFlow(Steered):
    """A transform of each number of x with parameters from e alone; if it is affine, a Gaussian at each σ and c.

    z = τ(x; W e + b),  log|det| = Σ log τ′,  W and b 0 at the start

    Args:
        shape: shape of one sample.
        embed_dim: width of the embedding e.
        transform: τ.
    """

    def __init__(self, shape: tuple[int, ...], embed_dim: int, transform: Transform):
        self.shape = (*shape, transform.num_params)
        super().__init__(embed_dim, math.prod(self.shape))
        self.transform = transform

    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        z, log_slope = self.transform.forward(x, self._params(cond))
        return z, sum_except_batch(log_slope)

    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        x, log_slope = inverse_of(self.transform, z, self._params(cond), cond)
        return x, sum_except_batch(log_slope)

    def _params(self, cond: Conditioning) -> Tensor:
        params = gated(self.steered(cond), cond)
        return params.unflatten(1, self.shape).movedim(-1, 1)  # (B, P, *shape)


def haar_split(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (B, C, H, W) → coarse image (B, C, H/2, W/2) and details (B, 3C, H/2, W/2), an orthogonal map."""
    u = _haar(squeeze(x).unflatten(1, (-1, 4)))
    return u[:, :, 0], u[:, :, 1:].flatten(1, 2)


def haar_join(c: Tensor, d: Tensor) -> Tensor:
    """The image with the coarse image c and the details d; the inverse of haar_split."""
    u = torch.cat([c[:, :, None], d.unflatten(1, (-1, 3))], dim=2)
    return unsqueeze(_haar(u).flatten(1, 2))


def _haar(u: Tensor) -> Tensor:
    """u (B, C, 4, H, W), 2×2 blocks → half their sum and differences, horizontal, vertical, diagonal; an involution."""
    a, b, c, d = u.unbind(2)
    return torch.stack([a + b + c + d, a - b + c - d, a + b - c - d, a - b - c + d], dim=2) / 2
