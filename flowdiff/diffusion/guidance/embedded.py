"""Guidance that a distilled model has inside: its scale is an input of the network."""

from __future__ import annotations

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from flowdiff.diffusion.guidance.base import Guidable, Guidance, given
from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioners.scaled import with_scale
from flowdiff.models.conditioning import Conditioning
from flowdiff.registry import register


@register("guidance", "embedded")
class Embedded(Guidance):
    """f(x, σ, c, w): a model that was distilled with loss.scales does what its teacher did at scale w, in one call.

    Args:
        denoiser: what is wrapped: the model itself.
        scales: the smallest and the largest w that the model has learned; None if it has learned none.
        scale: w, in that range.

    Raises:
        ConfigurationError: the model has no scale, or was not trained at this one.

    Source: Luo, Tan, Huang, Li, Zhao, Latent consistency models, 2023.
    """

    def __init__(self, denoiser: Guidable, scales: tuple[float, float] | None, *, scale: NonNegativeFloat):
        super().__init__(denoiser)
        if scales is None:
            raise ConfigurationError(
                "guidance=embedded sets the scale that a distilled model reads, and this model reads none: distil one "
                "with loss=consistency_distillation and loss.scales, or take guidance=cfg."
            )
        low, high = scales
        if not low <= scale <= high:
            raise ConfigurationError(
                f"guidance.scale={scale:g} is not allowed: this model was distilled at scales from {low:g} to {high:g}."
            )
        self.scale = scale

    def __call__(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        scale = torch.full_like(sigma, self.scale)
        return self.denoiser(x, sigma, with_scale(given(cond), scale))
