"""Cross-entropy of a classifier of noised data."""

from __future__ import annotations

from torch import Tensor

from flowdiff.diffusion.denoiser import Denoiser
from flowdiff.diffusion.losses.base import Loss, LossOutput
from flowdiff.models.conditioning import Conditioning
from flowdiff.registry import register
from flowdiff.shapes import append_dims


@register("loss", "cross_entropy")
class CrossEntropy(Loss):
    """−Σ_c v_c·log p(c|x, σ) in nats per sample, v = cond.vector (B, C), zeros and a one; needs a classifier."""

    needs_classifier = True
    differentiates_score = False

    def __init__(self):
        pass

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, sigma: Tensor, noise: Tensor, cond: Conditioning | None = None
    ) -> LossOutput:
        log_prob = denoiser.network.class_log_prob(x0 + append_dims(sigma, x0.ndim) * noise, sigma)
        right = (log_prob.argmax(1) == cond.vector.argmax(1)).to(log_prob)
        return LossOutput(-(cond.vector * log_prob).sum(1), {"accuracy": right})
