"""Denoising score matching: the squared error of the score."""

from __future__ import annotations

from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from flowdiff.diffusion.denoiser import Denoiser
from flowdiff.diffusion.losses.base import OF_THE_SCORE, Loss, LossOutput, Share
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.nn.directional import Gradient
from flowdiff.registry import register
from flowdiff.shapes import append_dims, mean_except_batch


@register("loss", "score_matching", requires=OF_THE_SCORE)
class ScoreMatching(Loss):
    """The error of the score with the weight λ(σ) = σ²: σ²·‖s(x, σ, c) + noise/σ‖²/D.

    Args:
        gradient: how the score of a flow is differentiated: double_backward, directional or forward_mode.
        fokker_planck: λ ≥ 0, weight of the squared residual of the Fokker–Planck equation; 0 leaves it out.
        fokker_planck_share: part of the batch that the residual is computed for, in (0, 1].
        fokker_planck_every: steps from one with the residual, so many times as strong, to the next, ≥ 1.

    Source: Song & Ermon, Generative modeling by estimating gradients of the data distribution, 2019.
    """

    def __init__(
        self,
        *,
        gradient: Gradient,
        fokker_planck: NonNegativeFloat,
        fokker_planck_share: Share,
        fokker_planck_every: PositiveInt,
    ):
        self.gradient = gradient
        self.fokker_planck = fokker_planck
        self.fokker_planck_share = fokker_planck_share
        self.fokker_planck_every = fokker_planck_every

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, sigma: Tensor, noise: Tensor, cond: Conditioning | None = None
    ) -> LossOutput:
        scale = append_dims(sigma, x0.ndim)
        s = denoiser.score(x0 + scale * noise, sigma, cond)
        return LossOutput(mean_except_batch((scale * s + noise).square()))
