"""Scalings: how a denoiser is made from the output of a network F.

    D(x, σ, c) = c_skip·x + c_out·F(c_in·x, c_noise, c),      x = x0 + σ·noise

A scaling determines what F predicts: the noise (`eps`), the velocity of the variance-preserving process (`v`) or of
flow matching (`flow_matching`), the score ∇ₓ log p_σ itself (`score`), or a mixture of noise and data whose variance is
one at every σ (`edm`).
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from pydantic import PositiveFloat
from torch import Tensor

from flowdiff.registry import register


class Scalings(NamedTuple):
    """The four coefficients of D = c_skip·x + c_out·F(c_in·x, c_noise), each of shape (B,)."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


class Scaling(ABC):
    """The four coefficients as functions of the noise level.

    boundary: noise level σ_min at which D(x, σ_min) = x for every network, so that D is a consistency function, see
        `consistency`; None for a denoiser.
    """

    boundary: float | None = None

    @abstractmethod
    def __call__(self, sigma: Tensor, sigma_data: Tensor | float) -> Scalings:
        """The coefficients at each noise level.

        Args:
            sigma: noise levels, (B,), > 0, in data units.
            sigma_data: root mean square of the data, a scalar.
        """


@register("scaling", "edm")
class EDM(Scaling):
    """The network's input and its target have variance one at every σ, and its errors are amplified least.

    c_skip = σ_d²/(σ²+σ_d²), c_out = σσ_d/√(σ²+σ_d²), c_in = 1/√(σ²+σ_d²), c_noise = ¼ ln σ,  σ_d = sigma_data

    Source: Karras, Aittala, Aila, Laine, Elucidating the design space of diffusion-based generative models, 2022,
    table 1.
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
    """The network predicts the noise: D = x − σ·F(x/√(σ²+1), σ).

    c_skip = 1, c_out = −σ, c_in = 1/√(σ²+1), c_noise = σ

    x/√(σ²+1) is the noised sample of the variance-preserving process. sigma_data is not used.

    Source: Ho, Jain, Abbeel, Denoising diffusion probabilistic models, 2020.
    """

    def __call__(self, sigma: Tensor, sigma_data: Tensor | float) -> Scalings:
        return Scalings(torch.ones_like(sigma), -sigma, (sigma**2 + 1).rsqrt(), sigma)


@register("scaling", "v")
class V(Scaling):
    """The network predicts the velocity v = α·noise − σα·x0 of the variance-preserving process, α = 1/√(σ²+1).

    c_skip = 1/(σ²+1), c_out = −σ/√(σ²+1), c_in = 1/√(σ²+1), c_noise = σ

    sigma_data is not used.

    Source: Salimans, Ho, Progressive distillation for fast sampling of diffusion models, 2022.
    """

    def __call__(self, sigma: Tensor, sigma_data: Tensor | float) -> Scalings:
        alpha = (sigma**2 + 1).rsqrt()
        return Scalings(alpha**2, -sigma * alpha, alpha, sigma)


@register("scaling", "flow_matching")
class FlowMatching(Scaling):
    """The network predicts the velocity v = noise − x0 of the straight path x_t = (1 − t)·x0 + t·noise.

    c_skip = 1/(1+σ), c_out = −σ/(1+σ), c_in = 1/(1+σ), c_noise = t,  t = σ/(1+σ)

    x_t = x/(1+σ), so D = x_t − t·v. An Euler step from σ to σ' is one from t to t' of dx_t/dt = v. With
    sigma_sampler=logit_normal and weighting=flow_matching the loss is that of flow matching. sigma_data is not used.

    Source: Lipman, Chen, Ben-Hamu, Nickel, Le, Flow matching for generative modeling, 2023; Liu, Gong, Liu, Flow
        straight and fast: learning to generate and transfer data with rectified flow, 2023.
    """

    def __call__(self, sigma: Tensor, sigma_data: Tensor | float) -> Scalings:
        signal = 1 / (1 + sigma)
        t = sigma * signal
        return Scalings(signal, -t, signal, t)


@register("scaling", "consistency")
class Consistency(Scaling):
    """The network is a consistency function f, which takes x at any σ to the end of its trajectory, x at σ_min.

    f(x, σ) = c_skip·x + c_out·F(c_in·x, ¼ ln σ),  c_skip = σ_d²/((σ−σ_min)²+σ_d²),
    c_out = (σ−σ_min)·σ_d/√(σ²+σ_d²),  c_in = 1/√(σ²+σ_d²),  σ_d = sigma_data

    f(x, σ_min) = x holds for every F. f is no E[x0|x]: it is trained by loss=consistency and sampled by
    sampler=consistency.

    Args:
        sigma_min: σ_min, where trajectories end, > 0, in data units.

    Source: Song, Dhariwal, Chen, Sutskever, Consistency models, 2023, appendix C.
    """

    def __init__(self, *, sigma_min: PositiveFloat):
        self.boundary = sigma_min

    def __call__(self, sigma: Tensor, sigma_data: Tensor | float) -> Scalings:
        assert self.boundary is not None
        way, norm = sigma - self.boundary, (sigma**2 + sigma_data**2).rsqrt()
        return Scalings(
            c_skip=sigma_data**2 / (way**2 + sigma_data**2),
            c_out=way * sigma_data * norm,
            c_in=norm,
            c_noise=sigma.log() / 4,
        )


@register("scaling", "score")
class Score(Scaling):
    """The network is the score s = ∇ₓ log p_σ(x) itself: D = x + σ²·s.

    c_skip = 1, c_out = σ², c_in = 1, c_noise = σ

    A score flow needs this scaling: its output is the gradient of its own log-density, which must be neither rescaled
    nor shifted. sigma_data is not used.

    Source: Efron, Tweedie's formula and selection bias, 2011.
    """

    def __call__(self, sigma: Tensor, sigma_data: Tensor | float) -> Scalings:
        return Scalings(torch.ones_like(sigma), sigma**2, torch.ones_like(sigma), sigma)
