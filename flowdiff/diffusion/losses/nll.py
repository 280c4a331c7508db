"""Maximum likelihood of noised data."""

from __future__ import annotations

from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from flowdiff.diffusion.denoiser import Denoiser
from flowdiff.diffusion.losses.base import (
    NEEDS_DENSITY,
    NEEDS_WEIGHTING_OF_LIKELIHOOD,
    OF_ONE_DIFFUSION,
    Loss,
    LossOutput,
    Share,
)
from flowdiff.diffusion.weightings import Weighting
from flowdiff.models.conditioning import Conditioning
from flowdiff.registry import register
from flowdiff.shapes import append_dims


@register("loss", "nll", requires=[NEEDS_DENSITY, NEEDS_WEIGHTING_OF_LIKELIHOOD, *OF_ONE_DIFFUSION])
class NLL(Loss):
    """The weighted negative log-likelihood of noised data, −w(σ)·log p_σ(x|c)/D.

    It is differentiated once only: no double backward, and attention may be fused. At every σ the best density is the
    same for every w; the weight decides at which σ a density that cannot be right everywhere is right. The unit is nats
    per dimension with weighting=unit.

    Args:
        weighting: w(σ).
        fokker_planck: λ ≥ 0, weight of the squared residual of the Fokker–Planck equation; 0 leaves it out.
        fokker_planck_share: part of the batch that the residual is computed for, in (0, 1].
        fokker_planck_every: steps from one with the residual, so many times as strong, to the next, ≥ 1.
    """

    differentiates_score = False

    def __init__(
        self,
        weighting: Weighting,
        *,
        fokker_planck: NonNegativeFloat,
        fokker_planck_share: Share,
        fokker_planck_every: PositiveInt,
    ):
        self.weighting = weighting
        self.fokker_planck = fokker_planck
        self.fokker_planck_share = fokker_planck_share
        self.fokker_planck_every = fokker_planck_every

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, sigma: Tensor, noise: Tensor, cond: Conditioning | None = None
    ) -> LossOutput:
        x = x0 + append_dims(sigma, x0.ndim) * noise
        nll = -denoiser.log_prob(x, sigma, cond) / x0[0].numel()
        return LossOutput(self.weighting(sigma, denoiser.sigma_data) * nll)
