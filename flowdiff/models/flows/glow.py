"""Glow: multi-scale steps of actnorm, an invertible 1×1 convolution and an affine coupling whose net is convolutional.

    x ← x·e^g + b             actnorm, one g and b per channel, steered by e
    x ← W x at every pixel    W = P L U, log|det| = H·W·Σ log diag U
    x_moved ← x_moved·e^s + t   (a, t) = net(x_kept; e), s = c·tanh(a/c), c the scale bound

e is the embedding of (¼ ln σ, c). After the steps of a level half of the channels leave (flowdiff/models/flows/multiscale.py).
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from flowdiff.models.activations import Activation
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.flows.base import Flow
from flowdiff.models.flows.coupling import Affine, Coupling
from flowdiff.models.flows.linear_maps import PLU
from flowdiff.models.flows.multiscale import MultiScale, Shape, conv_nets, image_levels
from flowdiff.models.nn.inject import Inject, zero_init
from flowdiff.models.nn.residual import NetSettings
from flowdiff.registry import register
from flowdiff.shapes import append_dims

STANDARD_MEAN, STANDARD_DEVIATION = 1.0, 2.0  # a channel of |mean| up to the one and deviation within this factor of 1


@register("flow", "glow")
class Glow(Flow):
    """n_flows steps of actnorm, PLU 1×1 convolution and affine coupling on each of `levels` scales, for images.

    x (B, C, H, W) → z like x, log-det (B,) in nats; H and W multiples of 2^levels, null: as many levels as they allow
    (at most 3). hidden, depth: width and residual blocks of the convolutional nets; scale_bound: |s| stays below it;
    inject: how (σ, c) enters the nets; checkpoint: compute each map again in the backward pass
    (flowdiff/models/nn/recompute.py). As smooth as its activation. It is built as the identity, and the first
    training batch leaves it that if the input is whitened (see ActNorm).
    Raises ConfigurationError for vectors and for sides that cannot be halved `levels` times.
    Source: Kingma & Dhariwal, "Glow: Generative Flow with Invertible 1×1 Convolutions", 2018.
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
        scale_bound: PositiveFloat,
        inject: Inject,
        checkpoint: bool,
    ):
        super().__init__()
        conv = conv_nets(NetSettings(hidden, depth, embed_dim, activation, inject, token_dim))

        def steps(inside: Shape) -> list[Flow]:
            channels, *grid = inside
            swapped = torch.arange(channels).flip(0)  # the next step moves the other half
            flows: list[Flow] = []
            for _ in range(n_flows):
                flows += [
                    ActNorm(channels, embed_dim, scale_bound),
                    PerPixel(PLU(channels, swapped)),
                    Coupling(channels, False, Affine(scale_bound), conv(tuple(grid))),
                ]
            restored = swapped if n_flows % 2 else swapped.flip(0)
            return [*flows, PerPixel(PLU(channels, restored))]

        self.flow = MultiScale(shape, image_levels("glow", shape, levels), steps, conv, scale_bound, checkpoint)

    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        return self.flow(x, cond)

    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        return self.flow.inverse(z, cond)


class ActNorm(Flow):
    """z = x·e^g + b per channel of x (B, C, H, W), g = γ + c·tanh(u(e)/c), b = β + v(e), (u, v) linear, 0 at first.

    γ and β are the identity until the first training batch (training mode, gradients recorded) makes z of mean 0 and
    deviation 1 over all processes' batches, once: `initialised` is part of the state dict, and neither loading nor
    evaluating touches it.
    Channels whose mean lies within ±1 and whose deviation within a factor 2 of 1 it leaves as they are. A whitened x
    is such, and standard at each σ: one γ and β for all σ, taken from their mixture, would spoil the Gaussian start.
    On the digits behind isotropic whitening it raises the test loss at the start from 1.00 to 1.21, for σ > 1.5 to
    3.8. What depends on σ is u's and v's to learn.
    """

    initialised: Tensor

    def __init__(self, channels: int, embed_dim: int, scale_bound: float):
        super().__init__()
        self.scale_bound = scale_bound
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.shift = nn.Parameter(torch.zeros(channels))
        self.steer = zero_init(nn.Linear(embed_dim, 2 * channels))
        self.register_buffer("initialised", torch.tensor(False))
        self._seen = False  # spares reading the buffer, which may lie on a GPU, at every step

    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        if self.training and not self._seen and torch.is_grad_enabled():
            self._initialise(x)
        g, b = self._steered(cond)
        return x * append_dims(g.exp(), 4) + append_dims(b, 4), g.sum(1) * math.prod(x.shape[2:])

    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        g, b = self._steered(cond)
        return (z - append_dims(b, 4)) * append_dims((-g).exp(), 4), -g.sum(1) * math.prod(z.shape[2:])

    def _steered(self, cond: Conditioning) -> tuple[Tensor, Tensor]:
        u, v = self.steer(cond.vector).to(cond.vector.dtype).chunk(2, dim=1)  # (B, C) each
        return self.log_scale + self.scale_bound * torch.tanh(u / self.scale_bound), self.shift + v

    @torch.no_grad()
    def _initialise(self, x: Tensor) -> None:
        self._seen = True
        if self.initialised:
            return
        x = x.detach()
        mean = _channel_mean(x)
        deviation = _channel_mean((x - append_dims(mean[None], 4)) ** 2).sqrt()
        near = (deviation > 1 / STANDARD_DEVIATION) & (deviation < STANDARD_DEVIATION) & (mean.abs() < STANDARD_MEAN)
        apply = ~near & (deviation > 0)  # a constant channel has no scale to take
        log_scale = -deviation.log()
        self.log_scale[apply] = log_scale[apply].to(self.log_scale)
        self.shift[apply] = (-mean * log_scale.exp())[apply].to(self.shift)
        self.initialised.fill_(True)


def _channel_mean(x: Tensor) -> Tensor:
    """The mean of each channel of x (B, C, H, W) over all processes' batches, (C,)."""
    total = torch.cat([x.sum((0, 2, 3)), x.new_tensor([x[:, 0].numel()])])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total)  # parameters are never sent between processes after the start
    return total[:-1] / total[-1]


class PerPixel(Flow):
    """A flow of vectors applied to the channels of each pixel, which all share it: a 1×1 convolution if it is linear.

    The flow is one that reads nothing off the condition.
    """

    def __init__(self, flow: Flow):
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        return self._of_pixels(self.flow.forward, x, cond)

    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        return self._of_pixels(self.flow.inverse, z, cond)

    @staticmethod
    def _of_pixels(direction, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        pixels = x.movedim(1, -1)  # (B, H, W, C)
        with torch.autocast(x.device.type, enabled=False):
            out, logdet = direction(pixels.flatten(0, 2), cond)
        return out.reshape(pixels.shape).movedim(-1, 1), logdet.reshape(len(x), -1).sum(1)
