"""Denoising score matching: the squared error of the score."""

from __future__ import annotations

from torch import Tensor

from flowdiff.diffusion.denoiser import Denoiser
from flowdiff.diffusion.losses.base import OF_THE_SCORE, Loss, LossOutput
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.nn.directional import Gradient
from flowdiff.registry import register
from flowdiff.shapes import append_dims, mean_except_batch


@register("loss", "score_matching", requires=OF_THE_SCORE)
class ScoreMatching(Loss):
    """The error of the score with the weight λ(σ) = σ²: σ²·‖s(x, σ, c) + noise/σ‖²/D.

    Args:
        gradient: how the score of a flow is differentiated: double_backward, directional or forward_mode.

    Source: Song & Ermon, Generative modeling by estimating gradients of the data distribution, 2019.
    """

    def __init__(self, *, gradient: Gradient):
        self.gradient = gradient

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, sigma: Tensor, noise: Tensor, cond: Conditioning | None = None
    ) -> LossOutput:
        scale = append_dims(sigma, x0.ndim)
        s = denoiser.score(x0 + scale * noise, sigma, cond)
        return LossOutput(mean_except_batch((scale * s + noise).square()))
