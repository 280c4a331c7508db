"""Guidance by the classifier that a class-conditional flow contains: p(c|x, σ) = p_σ(x|c)/Σ_k p_σ(x|k).

Its gradient is ∇ₓ log p(c|x, σ) = s_c − Σ_k p(k|x, σ)·s_k, so that D_c − σ²·∇ₓ log p(c|x, σ) is

    D_r = Σ_k p(k|x, σ)·D(x, σ, k),

the denoiser of the flow's own unconditional density Σ_k p_σ(x|k)/C, exactly.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from flowdiff.diffusion.guidance.base import Guide, Model, Pair, class_of, given
from flowdiff.diffusion.guidance.limits import Interval, Limits, Quantile, Share
from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.networks.base import Density
from flowdiff.registry import register
from flowdiff.shapes import append_dims


@register("guidance", "flow_classifier")
class FlowClassifier(Guide):
    """D_c + (w − 1)·σ²·∇ₓ log p(c|x, σ) with the exact posterior of the flow: no other model, no label dropout.

    All classes have the same prior probability. Each step evaluates the density and D of all C classes.

    Args:
        denoiser: the model to be guided, a class-conditional density.
        classes: () → the conditions of all its C classes.
        num_classes: C.
        scale: w ≥ 0; 1 is the conditional model.
        interval: [low, high] of σ at which to guide; None for every σ.
        rescale: φ ∈ [0, 1], how far D goes back to the standard deviation of D_c.
        dynamic_threshold: quantile ∈ (0, 1] of |D| that becomes 1 where it exceeds 1; None for no threshold.

    Raises:
        ConfigurationError: the model is not a density, or is unconditional.
    """

    innermost = True

    def __init__(
        self,
        denoiser: Model,
        classes: Callable[[], Conditioning] | None,
        num_classes: int | None,
        *,
        scale: NonNegativeFloat,
        interval: Interval,
        rescale: Share,
        dynamic_threshold: Quantile,
    ):
        super().__init__(denoiser, scale, Limits(interval, rescale, dynamic_threshold))
        if classes is None or num_classes is None or not isinstance(denoiser.network, Density):
            raise ConfigurationError(
                "guidance=flow_classifier needs a class-conditional density, and this model is not one: use "
                "network=score_flow and conditioner=class, or another guidance."
            )
        self.model = denoiser
        self.classes = classes
        self.num_classes = num_classes

    def pair(self, x: Tensor, sigma: Tensor, cond: Conditioning | None) -> Pair:
        n, classes = len(x), self.classes()
        every = torch.arange(self.num_classes, device=x.device)
        found = [self.model.log_prob_and_denoised(x, sigma, classes[k.expand(n)]) for k in every]
        log_prob, D = (torch.stack(parts, 1) for parts in zip(*found, strict=True))  # (B, C), (B, C, …)
        posterior = append_dims(log_prob.softmax(1), D.ndim)
        own = class_of(given(cond), classes)
        return Pair(D[torch.arange(n, device=D.device), own], (posterior * D).sum(1))
