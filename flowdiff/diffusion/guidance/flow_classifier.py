"""Guidance by the classifier that a class-conditional flow has built in: p(c|x, σ) = p_σ(x|c)/Σ_k p_σ(x|k).

Its gradient is ∇ₓ log p(c|x, σ) = s_c − Σ_k p(k|x, σ)·s_k, so that D_c − σ²·∇ₓ log p(c|x, σ) is

    D_r = Σ_k p(k|x, σ)·D(x, σ, k),

the denoiser of the flow's own unconditional density Σ_k p_σ(x|k)/C, exactly.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from flowdiff.diffusion.guidance.base import Denoise, Guide, Pair, class_of
from flowdiff.diffusion.guidance.limits import Interval, Limits, Quantile, Share
from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioning import Conditioning
from flowdiff.registry import register
from flowdiff.shapes import append_dims


@register("guidance", "flow_classifier")
class FlowClassifier(Guide):
    """D_c + (w − 1)·σ²·∇ₓ log p(c|x, σ) with the exact posterior of the flow: no further model, no label dropout.

    The classes are equally likely beforehand. Density and D of every class come from one evaluation each, C in a step.
    denoiser: of a density, with `log_prob_and_denoised`.  classes: () -> the Conditioning of all C classes.
    num_classes: C.
    Raises ConfigurationError for a model that is no density or knows no classes.
    """

    innermost = True

    def __init__(
        self,
        denoiser: Denoise,
        classes: Callable[[], Conditioning] | None,
        num_classes: int | None,
        *,
        scale: NonNegativeFloat,
        interval: Interval,
        rescale: Share,
        dynamic_threshold: Quantile,
    ):
        super().__init__(denoiser, scale, Limits(interval, rescale, dynamic_threshold))
        if classes is None or not hasattr(denoiser.network, "log_prob"):
            raise ConfigurationError(
                "guidance=flow_classifier needs a class-conditional density, and this model is none: take "
                "network=score_flow and conditioner=class, or another guidance."
            )
        self.classes = classes
        self.num_classes = num_classes

    def pair(self, x: Tensor, sigma: Tensor, cond: Conditioning) -> Pair:
        n, classes = len(x), self.classes()
        every = torch.arange(self.num_classes, device=x.device)
        found = [self.denoiser.log_prob_and_denoised(x, sigma, classes[k.expand(n)]) for k in every]
        log_prob, D = (torch.stack(parts, 1) for parts in zip(*found, strict=True))  # (B, C), (B, C, …)
        posterior = append_dims(log_prob.softmax(1), D.ndim)
        own = class_of(cond, classes)
        return Pair(D[torch.arange(n, device=D.device), own], (posterior * D).sum(1))
