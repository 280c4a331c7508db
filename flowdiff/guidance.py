"""Guidance: denoisers that wrap a denoiser, so that samplers never know of it. Classifier-free guidance is

    D_w(x, σ, c) = D(x, σ, ∅) + w·(D(x, σ, c) − D(x, σ, ∅)),

whose score is that of p(x|c)^w·p(x)^(1−w) at each noise level.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from flowdiff.conditioning import Conditioning
from flowdiff.errors import ConfigurationError
from flowdiff.registry import register


class Guidance(ABC):
    """A denoiser around a denoiser: only D is guided, `network` is the one inside, a density or not."""

    def __init__(self, denoiser: Callable[..., Tensor]):
        self.denoiser = denoiser

    @property
    def network(self) -> Any:
        """The network of the denoiser inside."""
        return self.denoiser.network

    @abstractmethod
    def __call__(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        """x (B, …), sigma (B,), cond of B samples -> the guided D (B, …)."""


@register("guidance", "none")
class NoGuidance(Guidance):
    """D as it is."""

    def __init__(self, denoiser: Callable[..., Tensor]):
        super().__init__(denoiser)

    def __call__(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        return self.denoiser(x, sigma, cond)


@register("guidance", "cfg")
class ClassifierFree(Guidance):
    """Classifier-free guidance: D_∅ + w·(D_c − D_∅), both halves in one batch of 2B.

    null: n -> the unconditional Conditioning of n samples.  scale: w ≥ 0; 1 is the conditional D, found
    without the unconditional half; above 1 the condition is exaggerated.
    Raises ConfigurationError when called without a condition, or if the model has no unconditional one.
    Source: Ho, Salimans, Classifier-free diffusion guidance, 2022 (their scale is w − 1).
    """

    def __init__(
        self,
        denoiser: Callable[..., Tensor],
        null: Callable[[int], Conditioning | None],
        *,
        scale: NonNegativeFloat,
    ):
        super().__init__(denoiser)
        self.null = null
        self.scale = scale

    def __call__(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        if cond is None:
            raise ConfigurationError(
                "guidance=cfg was given no condition to guide towards: give one or take guidance=none."
            )
        if self.scale == 1:
            return self.denoiser(x, sigma, cond)
        null = self.null(len(x))
        if null is None:
            raise ConfigurationError(
                "guidance=cfg needs a model that was also trained without its condition, and this one has no"
                " unconditional one: take guidance=none, or train with conditioner.drop > 0."
            )
        halves = torch.cat([x, x]), torch.cat([sigma, sigma]), Conditioning.cat([cond, null])
        conditional, unconditional = self.denoiser(*halves).chunk(2)  # (B, …) each
        return unconditional + self.scale * (conditional - unconditional)
