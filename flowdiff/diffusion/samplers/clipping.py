"""Clipping: D is kept in the range of the clean data.

D = E[x0|x] is a mean of clean data, so it lies in every box that holds them:

    low_c ≤ x0 ≤ high_c  for every clean x0   ⇒   low_c ≤ D ≤ high_c,   c the channel, or the dimension of a vector.

A network does not know this. Where its D is steep, a step of a sampler overshoots, the next D is larger still, and the
samples may overflow. With D in a box every step of a sampler is a linear map of x and of numbers in the box, so x stays
finite whatever the network is; and x0, which is the D of the last step, lies in the box. The score that belongs to the
clipped D is (D − x)/σ², from which samplers of the score compute.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flowdiff.diffusion.samplers.base import DenoiserLike
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.networks.base import Network
from flowdiff.shapes import append_dims

log = logging.getLogger(__name__)

Clip = Literal["auto"] | bool
"""Whether to clip: `auto` is what is best for the model, as measured by benchmarks/sampling_defaults.py."""


class DataRange(nn.Module):
    """The range of the clean data, a box: low_c ≤ x0 ≤ high_c for every channel c, for vectors every dimension.

    The range of images is [−1, 1]. That of latents and vectors is measured on the training split, by `extend`; it is
    infinite before. The ends are buffers, so that a checkpoint keeps them.

    Args:
        channels: channels of a sample (C, H, W), or dimensions of a sample (D,).
        images: whether the data are pixels in [−1, 1].
    """

    low: Tensor  # (channels,)
    high: Tensor  # (channels,)

    def __init__(self, channels: int, images: bool):
        super().__init__()
        self.images = images
        end = torch.full((channels,), 1.0 if images else torch.inf)
        self.register_buffer("low", -end)
        self.register_buffer("high", end)
        self.register_load_state_dict_pre_hook(_keep_own_range)

    @property
    def known(self) -> bool:
        """Whether the range is finite."""
        return bool(self.low.isfinite().all() & self.high.isfinite().all())

    def clear(self) -> None:
        """Forget what was measured."""
        if not self.images:
            self.low.fill_(-torch.inf)
            self.high.fill_(torch.inf)

    def extend(self, x0: Tensor) -> None:
        """Widen a measured range to hold clean data x0 (B, channels, …)."""
        if self.images:
            return
        low, high = x0.transpose(0, 1).flatten(1).aminmax(dim=1)
        first = ~self.low.isfinite()
        self.low.copy_(torch.where(first, low, torch.minimum(self.low, low.to(self.low))))
        self.high.copy_(torch.where(first, high, torch.maximum(self.high, high.to(self.high))))

    def forward(self, D: Tensor) -> Tensor:
        """D (B, channels, …) with every number in the range of its channel."""
        low, high = (append_dims(end, D.ndim - 1).to(D) for end in (self.low, self.high))
        return torch.clamp(D, low, high)


def _keep_own_range(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *unused: Any) -> None:
    """A checkpoint of an older version has no range: the module keeps its own."""
    for name, end in module.named_buffers(recurse=False):
        state_dict.setdefault(prefix + name, end)


class Clipped:
    """A denoiser whose D is kept in the range of the data; samplers call it in place of the one that it wraps.

    D ← min(max(D, low), high)

    Args:
        denoiser: what is wrapped: a model in its guidance.
        data_range: the range.
    """

    def __init__(self, denoiser: DenoiserLike, data_range: DataRange):
        self.denoiser = denoiser
        self.data_range = data_range

    @property
    def network(self) -> Network:
        """The network of the denoiser inside, which start=flow samples."""
        return self.denoiser.network

    def __call__(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        """The clipped D (B, …) of x (B, …) at sigma (B,)."""
        return self.data_range(self.denoiser(x, sigma, cond))


@cache
def say_unknown_range() -> None:
    """Say, once in a process, that D cannot be clipped."""
    log.warning(
        "D is not clipped, because the range of this model's training data is not known: an older version did not "
        "measure it, and while an autoencoder is trained along it changes"
    )
