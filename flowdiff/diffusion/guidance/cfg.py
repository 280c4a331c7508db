"""Classifier-free guidance: away from the model without its condition, D_r = D(x, σ, ∅)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from flowdiff.diffusion.guidance.base import Guidable, Guide, Pair, given
from flowdiff.diffusion.guidance.limits import Interval, Limits, Quantile, Share
from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioning import Conditioning
from flowdiff.registry import Requirement, register

NEEDS_NULL = Requirement(
    "conditioner",
    fits=lambda conditioner, node: bool(node.get("drop")),
    reason="this guidance needs the null condition, and the model is trained without label dropout",
    remedy="set conditioner=class with conditioner.drop > 0, or another guidance",
)


@register("guidance", "cfg", requires=[NEEDS_NULL])
class ClassifierFree(Guide):
    """D_∅ + w·(D_c − D_∅), the score of p(x|c)^w·p(x)^(1−w) at each noise level; both D in one batch of 2B.

    Args:
        denoiser: what is wrapped.
        null: n → the null condition of n samples; None if the model was trained without one.
        scale: w ≥ 0; 1 is the conditional model.
        interval: [low, high] of σ at which to guide; None for every σ.
        rescale: φ ∈ [0, 1], how far D goes back to the standard deviation of D_c.
        dynamic_threshold: quantile ∈ (0, 1] of |D| that becomes 1 where it exceeds 1; None for no threshold.

    Raises:
        ConfigurationError: there is no null condition.

    Source: Ho & Salimans, Classifier-free diffusion guidance, 2022 (their scale is w − 1).
    """

    innermost = True

    def __init__(
        self,
        denoiser: Guidable,
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
                "conditioner=class and conditioner.drop > 0, or use another guidance."
            )
        self.null = null

    def pair(self, x: Tensor, sigma: Tensor, cond: Conditioning | None) -> Pair:
        both = Conditioning.cat([given(cond), self.null(len(x))])
        return Pair(*self.denoiser(torch.cat([x, x]), torch.cat([sigma, sigma]), both).chunk(2))
