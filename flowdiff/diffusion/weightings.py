"""Weightings w(σ) of the denoising loss w(σ)·‖D(x, σ) − x0‖².

The signal-to-noise ratio of x = x0 + σ·noise is SNR = σ⁻². All weights are for the error of D in data units;
multiplied by c_out² of a scaling they
become the weights of the error of its raw network F.
"""

from abc import ABC, abstractmethod

import torch
from pydantic import PositiveFloat
from torch import Tensor

from flowdiff.registry import register


class Weighting(ABC):
    """A rule that weighs the squared error of D at a noise level."""

    @abstractmethod
    def __call__(self, sigma: Tensor, sigma_data: Tensor | float) -> Tensor:
        """sigma (B,) > 0; sigma_data a scalar, the data's root mean square -> weights (B,) > 0."""


@register("weighting", "edm")
class EDM(Weighting):
    """w = (σ²+σ_d²)/(σσ_d)²: the unweighted loss of F under the `edm` scaling.

    A network that outputs zero has a loss of about one at every σ.
    Source: Karras, Aittala, Aila, Laine, Elucidating the design space of diffusion-based generative models,
    2022, table 1.
    """

    def __call__(self, sigma: Tensor, sigma_data: Tensor | float) -> Tensor:
        return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


@register("weighting", "eps")
class Eps(Weighting):
    """w = σ⁻² = SNR: the unweighted loss of the predicted noise.

    Source: Ho, Jain, Abbeel, Denoising diffusion probabilistic models, 2020, equation 14.
    """

    def __call__(self, sigma: Tensor, sigma_data: Tensor | float) -> Tensor:
        return sigma**-2


@register("weighting", "v")
class V(Weighting):
    """w = (σ²+1)/σ² = SNR + 1: the unweighted loss of the predicted velocity.

    Source: Salimans, Ho, Progressive distillation for fast sampling of diffusion models, 2022.
    """

    def __call__(self, sigma: Tensor, sigma_data: Tensor | float) -> Tensor:
        return 1 + sigma**-2


@register("weighting", "unit")
class Unit(Weighting):
    """w = 1: the plain mean squared error of D, which high noise levels dominate."""

    def __call__(self, sigma: Tensor, sigma_data: Tensor | float) -> Tensor:
        return torch.ones_like(sigma)


@register("weighting", "min_snr")
class MinSNR(Weighting):
    """w = min(σ⁻², γ): the noise loss, without letting nearly clean samples outweigh all others.

    gamma (γ > 0): the largest weight. For γ → ∞ this is `eps`.
    Source: Hang, Gu, Li, Bao, Chen, Hu, Geng, Guo, Efficient diffusion training via min-SNR weighting
    strategy, 2023.
    """

    def __init__(self, *, gamma: PositiveFloat):
        self.gamma = gamma

    def __call__(self, sigma: Tensor, sigma_data: Tensor | float) -> Tensor:
        return (sigma**-2).clamp(max=self.gamma)


@register("weighting", "soft_min_snr")
class SoftMinSNR(Weighting):
    """w = γ·SNR/(γ + SNR) = 1/(σ² + 1/γ): `min_snr` with its corner rounded off.

    gamma (γ > 0): the weight as σ → 0. γ = 1/σ_d² gives the weight 1/(σ²+σ_d²), k-diffusion's "soft-min-snr".
    Source: Crowson, Baumann, Birch, Abraham, Kaplan, Shippole, Scalable high-resolution pixel-space image
    synthesis with hourglass diffusion transformers, 2024; in code in k-diffusion.
    """

    def __init__(self, *, gamma: PositiveFloat):
        self.gamma = gamma

    def __call__(self, sigma: Tensor, sigma_data: Tensor | float) -> Tensor:
        return 1 / (sigma**2 + 1 / self.gamma)
