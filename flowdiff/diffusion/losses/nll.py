"""Maximum likelihood of noised data."""

from __future__ import annotations

from torch import Tensor

from flowdiff.diffusion.denoiser import Denoiser
from flowdiff.diffusion.losses.base import NEEDS_DENSITY, Loss, LossOutput
from flowdiff.models.conditioning import Conditioning
from flowdiff.registry import register
from flowdiff.shapes import append_dims


@register("loss", "nll", requires=[NEEDS_DENSITY])
class NLL(Loss):
    """The negative log-likelihood of noised data, −log p_σ(x|c)/D in nats per dimension.

    It is differentiated once only: no double backward, and attention may be fused.
    """

    differentiates_score = False

    def __init__(self) -> None:
        pass

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, sigma: Tensor, noise: Tensor, cond: Conditioning | None = None
    ) -> LossOutput:
        x = x0 + append_dims(sigma, x0.ndim) * noise
        return LossOutput(-denoiser.log_prob(x, sigma, cond) / x0[0].numel())
