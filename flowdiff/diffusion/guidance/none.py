"""No guidance."""

from __future__ import annotations

from torch import Tensor

from flowdiff.diffusion.guidance.base import Guidable, Guidance
from flowdiff.models.conditioning import Conditioning
from flowdiff.registry import register


@register("guidance", "none")
class NoGuidance(Guidance):
    """D without guidance.

    Args:
        denoiser: what is wrapped.
    """

    def __init__(self, denoiser: Guidable):
        super().__init__(denoiser)

    def __call__(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        return self.denoiser(x, sigma, cond)
