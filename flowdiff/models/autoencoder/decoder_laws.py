"""The law of an image given its latent, p(x|ℓ): every pixel by itself around what the decoder says of it, a.

mse   N(a, s²)                      −log p = (x − a)²/2s² + ln s + ½ ln 2π
l1    Laplace(a, s)                 −log p = |x − a|/s + ln 2s
bce   continuous Bernoulli, y = (x + 1)/2 ∈ [0, 1], p(y) ∝ e^{ay}     −log p = A(a) − a·y + ln 2,  A = ln[(e^a − 1)/a]

The scale s is learned with the rest, one number for all pixels: at its best it is the error itself, so that the weight
between reconstruction and KL needs no tuning. bce is the binary cross-entropy of grey values, with the constant that
makes it a density of them and not of coin tosses.
Sources: Rybkin, Daniilidis & Levine, Simple and effective VAE training with calibrated decoders, 2021; Loaiza-Ganem &
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

# ln s = GAIN·θ: Adam moves all numbers at one pace, and this one has a way of several units to go.
GAIN = 10.0


class DecoderLaw(nn.Module, ABC):
    """p(x|ℓ) as a function of the decoder's output a, shaped like x ∈ [−1, 1], (B, *shape)."""

    @abstractmethod
    def log_prob(self, x: Tensor, a: Tensor) -> Tensor:
        """log p(x|ℓ) in nats, (B,)."""

    def image(self, a: Tensor) -> Tensor:
        """E[x|ℓ], like a."""
        return a


class GaussianLaw(DecoderLaw):
    """N(a, s²), its loss the mean squared error."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(()))

    def log_prob(self, x: Tensor, a: Tensor) -> Tensor:
        log_s = GAIN * self.log_scale
        return -sum_except_batch(0.5 * (x - a) ** 2 * (-2 * log_s).exp() + log_s + 0.5 * math.log(2 * math.pi))

    @torch.no_grad()
    def fit(self, mean_squared_error: float) -> None:
        """Set s to where the likelihood is largest: s² is the mean squared error."""
        self.log_scale.fill_(0.5 * math.log(mean_squared_error) / GAIN)


class LaplaceLaw(DecoderLaw):
    """Laplace(a, s), its loss the mean absolute error."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(()))

    def log_prob(self, x: Tensor, a: Tensor) -> Tensor:
        log_s = GAIN * self.log_scale
        return -sum_except_batch((x - a).abs() * (-log_s).exp() + log_s + math.log(2))


class ContinuousBernoulliLaw(DecoderLaw):
    """p(y) ∝ e^{ay} on y = (x + 1)/2 ∈ [0, 1]; nothing outside."""

    def log_prob(self, x: Tensor, a: Tensor) -> Tensor:
        y = (x + 1) / 2
        h = a.abs() / 2
        small = h < 1e-2
        away = torch.where(small, 1.0, h)  # neither side of `where` may be infinite, or its gradient is NaN
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
