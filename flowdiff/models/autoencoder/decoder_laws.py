"""Distributions p(x|ℓ) of an image given its latent: independent pixels, whose parameter is the decoder's output a.

mse   N(a, s²)                      −log p = (x − a)²/2s² + ln s + ½ ln 2π
l1    Laplace(a, s)                 −log p = |x − a|/s + ln 2s
bce   continuous Bernoulli, y = (x + 1)/2 ∈ [0, 1], p(y) ∝ e^{ay}     −log p = A(a) − a·y + ln 2,  A = ln[(e^a − 1)/a]

The scale s, one number for all pixels, is trained with the weights. Its optimum is the reconstruction error, so the
weight between reconstruction and KL needs no tuning. bce is the binary cross-entropy of grey values with the constant
that makes it a density on [0, 1]; without it, it would be a distribution on {0, 1}.

Source: Rybkin, Daniilidis, Levine, Simple and effective VAE training with calibrated decoders, 2021; Loaiza-Ganem,
Cunningham, The continuous Bernoulli, 2019.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from flowdiff.shapes import sum_except_batch

Reconstruction = Literal["mse", "l1", "bce"]

# ln s = GAIN·θ: Adam moves every parameter at the same rate, and ln s has to move by several units.
GAIN = 10.0


class DecoderLaw(nn.Module, ABC):
    """A distribution p(x|ℓ) of images x ∈ [−1, 1], (B, *shape), given the decoder's output a, shaped like x."""

    @abstractmethod
    def log_prob(self, x: Tensor, a: Tensor) -> Tensor:
        """log p(x|ℓ) in nats, (B,)."""

    def image(self, a: Tensor) -> Tensor:
        """E[x|ℓ], shaped like a."""
        return a


class GaussianLaw(DecoderLaw):
    """N(a, s²), whose loss is the mean squared error."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(()))

    def log_prob(self, x: Tensor, a: Tensor) -> Tensor:
        log_s = GAIN * self.log_scale
        return -sum_except_batch(0.5 * (x - a) ** 2 * (-2 * log_s).exp() + log_s + 0.5 * math.log(2 * math.pi))

    @torch.no_grad()
    def fit(self, mean_squared_error: float) -> None:
        """Set s² to the mean squared error, which maximises the likelihood."""
        self.log_scale.fill_(0.5 * math.log(mean_squared_error) / GAIN)


class LaplaceLaw(DecoderLaw):
    """Laplace(a, s), whose loss is the mean absolute error."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(()))

    def log_prob(self, x: Tensor, a: Tensor) -> Tensor:
        log_s = GAIN * self.log_scale
        return -sum_except_batch((x - a).abs() * (-log_s).exp() + log_s + math.log(2))


class ContinuousBernoulliLaw(DecoderLaw):
    """p(y) ∝ e^{ay} for y = (x + 1)/2 ∈ [0, 1], and 0 outside."""

    def log_prob(self, x: Tensor, a: Tensor) -> Tensor:
        y = (x + 1) / 2
        h = a.abs() / 2
        small = h < 1e-2
        away = torch.where(small, 1.0, h)  # if a branch of `where` is infinite, the gradient is NaN
        log_sinhc = torch.where(small, h**2 / 6, away + torch.log1p(-(-2 * away).exp()) - (2 * away).log())
        return sum_except_batch(a * (y - 0.5) - log_sinhc - math.log(2))  # A(a) = a/2 + ln(sinh(h)/h)

    def image(self, a: Tensor) -> Tensor:
        """2·A'(a) − 1 = coth(a/2) − 2/a."""
        h = a / 2
        small = h.abs() < 1e-2
        away = torch.where(small, 1.0, h)
        return torch.where(small, h / 3, 1 / away.tanh() - 1 / away)


LAWS: dict[str, type[DecoderLaw]] = dict(
    zip(get_args(Reconstruction), (GaussianLaw, LaplaceLaw, ContinuousBernoulliLaw), strict=True)
)
