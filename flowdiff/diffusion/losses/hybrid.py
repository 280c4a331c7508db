"""Denoising and maximum likelihood of the same density."""

from __future__ import annotations

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from flowdiff.diffusion.denoiser import Denoiser
from flowdiff.diffusion.losses.base import NEEDS_DENSITY, OF_THE_SCORE, Loss, LossOutput, Share
from flowdiff.diffusion.weightings import Weighting
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.nn.directional import Gradient
from flowdiff.registry import register
from flowdiff.shapes import append_dims, mean_except_batch


@register("loss", "hybrid", requires=[NEEDS_DENSITY, *OF_THE_SCORE])
class Hybrid(Loss):
    """Denoising plus likelihood, w(σ)·‖D − x0‖²/D + λ·(−log p_σ(x|c)/D), from one evaluation of the flow.

    Score matching does not see the weights of separated modes; likelihood does.

    Args:
        weighting: w(σ).
        nll_weight: λ > 0.
        gradient: how the score of a flow is differentiated: double_backward, directional or forward_mode.
        fokker_planck: λ ≥ 0, weight of the squared residual of the Fokker–Planck equation; 0 leaves it out.
        fokker_planck_share: part of the batch that the residual is computed for, in (0, 1].
        fokker_planck_every: steps from one with the residual, so many times as strong, to the next, ≥ 1.
    """

    def __init__(
        self,
        weighting: Weighting,
        *,
        nll_weight: PositiveFloat,
        gradient: Gradient,
        fokker_planck: NonNegativeFloat,
        fokker_planck_share: Share,
        fokker_planck_every: PositiveInt,
    ):
        self.weighting = weighting
        self.learned = weighting if isinstance(weighting, nn.Module) else None
        self.gradient = gradient
        self.fokker_planck = fokker_planck
        self.fokker_planck_share = fokker_planck_share
        self.fokker_planck_every = fokker_planck_every
        self.nll_weight = nll_weight

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, sigma: Tensor, noise: Tensor, cond: Conditioning | None = None
    ) -> LossOutput:
        x = x0 + append_dims(sigma, x0.ndim) * noise
        log_prob, D = denoiser.log_prob_and_denoised(x, sigma, cond)
        weighted = self.weighting(sigma, denoiser.sigma_data) * mean_except_batch((D - x0).square())
        denoising = weighted + self.weighting.offset(sigma)
        nll = -log_prob / x0[0].numel()
        return LossOutput(denoising + self.nll_weight * nll, {"denoising": denoising, "nll": nll})
