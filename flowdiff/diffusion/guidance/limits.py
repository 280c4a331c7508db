"""Limits of a guided D: the noise levels at which it is guided, its standard deviation and its largest values."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor

from flowdiff.errors import ConfigurationError
from flowdiff.shapes import append_dims

Interval = Annotated[list[NonNegativeFloat], Field(min_length=2, max_length=2)] | None
Share = Annotated[float, Field(ge=0, le=1)]
Quantile = Annotated[float, Field(gt=0, le=1)] | None


class Limits:
    """Where a guide guides, and how far.

    Args:
        interval: [low, high] of σ at which to guide; None for every σ.
        rescale: φ ∈ [0, 1]; 0 does not rescale.
        dynamic_threshold: the quantile ∈ (0, 1] of |D| that becomes 1 where it exceeds 1; None for no threshold.

    Raises:
        ConfigurationError: not low < high.
    """

    def __init__(self, interval: Interval, rescale: Share, dynamic_threshold: Quantile):
        if interval is not None and not interval[0] < interval[1]:
            raise ConfigurationError(
                f"guidance.interval={interval} is not allowed: give the lowest and the highest σ at which to guide, "
                "low < high, e.g. [0.2, 3.0]."
            )
        self.interval = interval
        self.rescale = rescale
        self.dynamic_threshold = dynamic_threshold

    def inside(self, sigma: Tensor) -> Tensor:
        """Whether each of sigma (B,) lies in the interval, (B,) bool.

        Source: Kynkäänniemi, Aittala, Karras, Laine, Aila, Lehtinen, Applying guidance in a limited interval improves
        sample and distribution quality in diffusion models, 2024.
        """
        low, high = self.interval or (0.0, math.inf)
        return (low <= sigma) & (sigma <= high)

    def __call__(self, guided: Tensor, conditional: Tensor) -> Tensor:
        """The guided D (B, …) within the limits, given D_c (B, …)."""
        D = rescaled(guided, conditional, self.rescale) if self.rescale else guided
        return D if self.dynamic_threshold is None else thresholded(D, self.dynamic_threshold)


def rescaled(guided: Tensor, conditional: Tensor, share: float) -> Tensor:
    """D·(φ·std(D_c)/std(D) + 1 − φ), φ = share, standard deviations over all numbers of a sample: (B, …).

    Source: Lin, Liu, Li, Yang, Common diffusion noise schedules and sample steps are flawed, 2023.
    """
    spread = guided.flatten(1).std(1).clamp_min(torch.finfo(guided.dtype).tiny)
    factor = share * conditional.flatten(1).std(1) / spread + (1 - share)
    return append_dims(factor, guided.ndim) * guided


def thresholded(D: Tensor, quantile: float) -> Tensor:
    """clip(D, −s, s)/s with s = max(1, quantile of a sample's |D|): (B, …).

    The result lies in [−1, 1], the range of the data; a D within that range is not changed.
    Source: Saharia et al., Photorealistic text-to-image diffusion models with deep language understanding, 2022.
    """
    size = D.flatten(1).abs()
    s = size.kthvalue(max(1, math.ceil(quantile * size.shape[1])), dim=1).values.clamp_min(1)
    s = append_dims(s, D.ndim)
    return torch.clamp(D, -s, s) / s
