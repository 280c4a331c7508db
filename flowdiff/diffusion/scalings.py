"""Scalings: how a denoiser is put together from a raw network F.

    D(x, σ, c) = c_skip·x + c_out·F(c_in·x, c_noise, c),      x = x0 + σ·noise

Each scaling says what F has to output: with `eps` F is the noise, with `v` the velocity of the
variance-preserving process, with `score` ∇ₓ log p_σ itself, with `edm` a mixture of noise and data whose
variance is one at every σ.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from flowdiff.registry import register


class Scalings(NamedTuple):
    """The four coefficients of D = c_skip·x + c_out·F(c_in·x, c_noise), each of shape (B,)."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


class Scaling(ABC):
    """A rule that gives the four coefficients at a noise level."""

    @abstractmethod
    def __call__(self, sigma: Tensor, sigma_data: Tensor | float) -> Scalings:
        """sigma (B,) > 0; sigma_data a scalar, the data's root mean square -> Scalings of (B,)."""


@register("scaling", "edm")
class EDM(Scaling):
    """F's input and its regression target have variance one at every σ, and F's errors are amplified least.

    c_skip = σ_d²/(σ²+σ_d²), c_out = σσ_d/√(σ²+σ_d²), c_in = 1/√(σ²+σ_d²), c_noise = ¼ ln σ, with σ_d =
    sigma_data.
    Source: Karras, Aittala, Aila, Laine, Elucidating the design space of diffusion-based generative models,
    2022, table 1.
    """

    def __call__(self, sigma: Tensor, sigma_data: Tensor | float) -> Scalings:
        variance = sigma**2 + sigma_data**2
        return Scalings(
            c_skip=sigma_data**2 / variance,
            c_out=sigma * sigma_data * variance.rsqrt(),
            c_in=variance.rsqrt(),
            c_noise=sigma.log() / 4,
        )


@register("scaling", "eps")
class Eps(Scaling):
    """F predicts the noise: D = x − σ·F(x/√(σ²+1), σ).

    c_skip = 1, c_out = −σ, c_in = 1/√(σ²+1), c_noise = σ. It does not depend on sigma_data.
    Source: Ho, Jain, Abbeel, Denoising diffusion probabilistic models, 2020 (x_VP = x/√(σ²+1)).
    """

    def __call__(self, sigma: Tensor, sigma_data: Tensor | float) -> Scalings:
        return Scalings(torch.ones_like(sigma), -sigma, (sigma**2 + 1).rsqrt(), sigma)


@register("scaling", "v")
class V(Scaling):
    """F predicts the velocity v = α·noise − σ_VP·x0 of the variance-preserving process, α = 1/√(σ²+1), σ_VP =
    σα.

    c_skip = 1/(σ²+1), c_out = −σ/√(σ²+1), c_in = 1/√(σ²+1), c_noise = σ. It does not depend on sigma_data.
    Source: Salimans, Ho, Progressive distillation for fast sampling of diffusion models, 2022.
    """

    def __call__(self, sigma: Tensor, sigma_data: Tensor | float) -> Scalings:
        alpha = (sigma**2 + 1).rsqrt()
        return Scalings(alpha**2, -sigma * alpha, alpha, sigma)


@register("scaling", "score")
class Score(Scaling):
    """F is the score s = ∇ₓ log p_σ(x) itself: D = x + σ²·s.

    c_skip = 1, c_out = σ², c_in = 1, c_noise = σ. It does not depend on sigma_data. The one scaling for a
    score flow, whose output is the gradient of its own log-density and may be neither rescaled nor shifted.
    Source: Tweedie's formula, in Efron, Tweedie's formula and selection bias, 2011.
    """

    def __call__(self, sigma: Tensor, sigma_data: Tensor | float) -> Scalings:
        return Scalings(torch.ones_like(sigma), sigma**2, torch.ones_like(sigma), sigma)
