"""Glow: multi-scale steps of actnorm, an invertible 1×1 convolution and an affine coupling with a convolutional net.

    x ← x·e^g + b             actnorm, one g and b per channel, set by e
    x ← W x at every pixel    W = P L U, log|det| = H·W·Σ log diag U
    x_moved ← x_moved·e^s + t   (a, t) = net(x_kept; e), s = c·tanh(a/c), c the scale bound

e is the embedding of (¼ ln σ, c). After the steps of a level half of the channels are finished
(flowdiff/models/flows/multiscale.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.distributed as dist
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from flowdiff.models.activations import Activation
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.flows.base import Flow, embedding
from flowdiff.models.flows.coupling import Affine, Coupling
from flowdiff.models.flows.gate import gated
from flowdiff.models.flows.guided import guided_forward
from flowdiff.models.flows.linear_maps import PLU
from flowdiff.models.flows.multiscale import MultiScale, Shape, conv_nets, image_levels
from flowdiff.models.nn.inject import Inject, zero_init
from flowdiff.models.nn.residual import NetSettings
from flowdiff.registry import register
from flowdiff.shapes import append_dims

# ActNorm leaves a channel as it is if |mean| < MAX_MEAN and its deviation is within a factor MAX_DEVIATION of 1.
MAX_MEAN, MAX_DEVIATION = 1.0, 2.0


@register("flow", "glow")
class Glow(Flow):
    """Actnorm, PLU 1×1 convolution and affine coupling, n_flows times on each of `levels` scales, for images.

    x ← x·e^g + b,  x ← W x,  x_moved ← x_moved·e^s + t

    The flow is as smooth as its activation. It is built as the identity, and the first training batch leaves it the
    identity if the input is whitened (see ActNorm).

    Args:
        shape: shape of one sample, (C, H, W); H and W are multiples of 2^levels.
        embed_dim: width of the embedding e = cond.vector (B, embed_dim).
        activation: nonlinearity of the nets.
        token_dim: width of cond.tokens (B, L, token_dim), read by inject=cross_attention; 0 without tokens.
        n_flows: steps on each level, ≥ 1.
        levels: scales, ≥ 1, each halves the sides; None: as many as the sides allow, at most 3.
        hidden: width of the convolutional nets, ≥ 1.
        depth: residual blocks of each net, ≥ 1.
        scale_bound: bound > 0 of every log-scale |s|, in nats.
        inject: how (σ, c) enters the nets, film | concat | cross_attention.
        checkpoint: recompute each map in the backward pass instead of storing its activations.

    Raises:
        ConfigurationError: the samples are vectors, or their sides cannot be halved `levels` times.

    Source: Kingma, Dhariwal, Glow: Generative Flow with Invertible 1×1 Convolutions, 2018.
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
        scale_bound: PositiveFloat,
        inject: Inject,
        checkpoint: bool,
    ):
        super().__init__()
        levels = image_levels("glow", shape, levels)
        conv = conv_nets(NetSettings(hidden, depth, embed_dim, activation, inject, token_dim))

        def steps(level_shape: Shape) -> list[Flow]:
            channels, height, width = level_shape
            swapped = torch.arange(channels).flip(0)  # so that the next step transforms the other half
            flows: list[Flow] = []
            for _ in range(n_flows):
                flows += [
                    ActNorm(channels, embed_dim, scale_bound),
                    PerPixel(PLU(channels, swapped)),
                    Coupling(channels, False, Affine(scale_bound), conv((height, width))),
                ]
            restored = swapped if n_flows % 2 else swapped.flip(0)
            return [*flows, PerPixel(PLU(channels, restored))]

        C, H, W = shape
        self.flow = MultiScale((C, H, W), levels, steps, conv, scale_bound, checkpoint)

    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        return self.flow(x, cond)

    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        return self.flow.inverse(z, cond)


class ActNorm(Flow):
    """Scale and shift of each channel, standardised by the first training batch and then learned.

    z = x·e^g + b for x (B, C, H, W),  g = α + c·tanh(u(e)/c),  b = β + v(e),  (u, v) linear in e and 0 at the start

    α = β = 0 until the first training batch (training mode, gradients recorded). That batch sets them so that z has
    mean 0 and deviation 1 over the batches of all processes, once: the flag `initialised` is part of the state dict,
    and neither loading nor evaluating changes α and β. With a gate, which multiplies g and b, it is so where γ = 1.

    A channel whose mean lies within ±1 and whose deviation lies within a factor 2 of 1 is left as it is. A whitened x
    is of this kind, and standard at each σ: one α and β for all σ, measured on their mixture, would spoil the Gaussian
    start. On the digits behind isotropic whitening it raises the test loss at the start from 1.00 to 1.21, for σ > 1.5
    to 3.8. u and v learn what depends on σ.

    Args:
        channels: C, ≥ 1.
        embed_dim: width of the embedding e.
        scale_bound: c > 0 in nats.
    """

    initialised: Tensor

    def __init__(self, channels: int, embed_dim: int, scale_bound: float):
        super().__init__()
        self.scale_bound = scale_bound
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.shift = nn.Parameter(torch.zeros(channels))
        self.steer = zero_init(nn.Linear(embed_dim, 2 * channels))
        self.register_buffer("initialised", torch.tensor(False))
        self._seen_a_batch = False  # avoids reading the buffer, which may be on a GPU, at every step

    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        if self.training and not self._seen_a_batch and torch.is_grad_enabled():
            self._initialise(x)
        g, b = self._scale_shift(cond)
        return x * append_dims(g.exp(), 4) + append_dims(b, 4), g.sum(1) * math.prod(x.shape[2:])

    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        g, b = self._scale_shift(cond)
        if cond.guidance is not None:
            g, b = guided_forward(g, b, cond.guidance[:, 1])
        return (z - append_dims(b, 4)) * append_dims((-g).exp(), 4), -g.sum(1) * math.prod(z.shape[2:])

    def _scale_shift(self, cond: Conditioning) -> tuple[Tensor, Tensor]:
        u, v = self.steer(cond.vector).to(embedding(cond).dtype).chunk(2, dim=1)  # (B, C) each
        g, b = self.log_scale + self.scale_bound * torch.tanh(u / self.scale_bound), self.shift + v
        return gated(g, cond), gated(b, cond)

    @torch.no_grad()
    def _initialise(self, x: Tensor) -> None:
        self._seen_a_batch = True
        if self.initialised:
            return
        x = x.detach()
        mean = _channel_mean(x)
        deviation = _channel_mean((x - append_dims(mean[None], 4)) ** 2).sqrt()
        near = (deviation > 1 / MAX_DEVIATION) & (deviation < MAX_DEVIATION) & (mean.abs() < MAX_MEAN)
        apply = ~near & (deviation > 0)  # a constant channel has no scale
        log_scale = -deviation.log()
        self.log_scale[apply] = log_scale[apply].to(self.log_scale)
        self.shift[apply] = (-mean * log_scale.exp())[apply].to(self.shift)
        self.initialised.fill_(True)


def _channel_mean(x: Tensor) -> Tensor:
    """Mean of each channel of x (B, C, H, W) over the batches of all processes, (C,)."""
    total = torch.cat([x.sum((0, 2, 3)), x.new_tensor([x[:, 0].numel()])])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total)  # parameters are not synchronised after the start
    return total[:-1] / total[-1]


class PerPixel(Flow):
    """A linear map applied to the channels of each pixel, with shared weights: an invertible 1×1 convolution.

    Args:
        flow: the map of C dimensions.
    """

    def __init__(self, flow: PLU):
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        return self._per_pixel(self.flow.forward, x, cond)

    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        return self._per_pixel(self.flow.inverse, z, cond)

    @staticmethod
    def _per_pixel(
        direction: Callable[[Tensor, Conditioning], tuple[Tensor, Tensor]], x: Tensor, cond: Conditioning
    ) -> tuple[Tensor, Tensor]:
        pixels = x.movedim(1, -1)  # (B, H, W, C)
        with torch.autocast(x.device.type, enabled=False):
            out, logdet = direction(pixels, cond)
        return out.movedim(-1, 1), logdet
