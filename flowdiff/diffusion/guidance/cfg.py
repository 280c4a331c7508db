"""Classifier-free guidance: away from the model without its condition, D_r = D(x, σ, ∅)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from flowdiff.diffusion.guidance.base import Denoise, Guide, Pair
from flowdiff.diffusion.guidance.limits import Interval, Limits, Quantile, Share
from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioning import Conditioning
from flowdiff.registry import register


@register("guidance", "cfg")
class ClassifierFree(Guide):
    """D_∅ + w·(D_c − D_∅), both halves in one batch of 2B: the score of p(x|c)^w·p(x)^(1−w) at each noise level.

    null: n -> the unconditional Conditioning of n samples; ConfigurationError if None, as the model then has none.
    Source: Ho, Salimans, Classifier-free diffusion guidance, 2022 (their scale is w − 1).
    """

    needs_null = True
    innermost = True

    def __init__(
        self,
        denoiser: Denoise,
        null: Callable[[int], Conditioning] | None,
        *,
        scale: NonNegativeFloat,
        interval: Interval,
        rescale: Share,
        dynamic_threshold: Quantile,
    ):
        super().__init__(denoiser, scale, Limits(interval, rescale, dynamic_threshold))
        if null is None:
            raise ConfigurationError(
                "guidance=cfg needs the null condition, and this model was trained without label dropout: train with "
                "conditioner=class and conditioner.drop > 0, or take another guidance."
            )
        self.null = null

    def pair(self, x: Tensor, sigma: Tensor, cond: Conditioning) -> Pair:
        halves = torch.cat([x, x]), torch.cat([sigma, sigma]), Conditioning.cat([cond, self.null(len(x))])
        return Pair(*self.denoiser(*halves).chunk(2))
