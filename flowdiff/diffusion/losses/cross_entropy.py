"""Cross-entropy of a classifier of noised data."""

from __future__ import annotations

from torch import Tensor

from flowdiff.diffusion.denoiser import Denoiser
from flowdiff.diffusion.losses.base import NEEDS_CLASSIFIER, Loss, LossOutput
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.networks.base import NoisyClassifier
from flowdiff.registry import register
from flowdiff.shapes import append_dims


@register("loss", "cross_entropy", requires=[NEEDS_CLASSIFIER])
class CrossEntropy(Loss):
    """The cross-entropy −Σ_c v_c·log p(c|x, σ) in nats per sample; v = cond.vector (B, C) is the one-hot class.

    The part `accuracy` is 1 for a sample whose most probable class is its own, else 0.
    """

    differentiates_score = False

    def __init__(self) -> None:
        pass

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, sigma: Tensor, noise: Tensor, cond: Conditioning | None = None
    ) -> LossOutput:
        network = denoiser.network
        assert isinstance(network, NoisyClassifier)  # the requirement
        assert cond is not None  # the network takes conditioner=one_hot only
        assert cond.vector is not None
        log_prob = network.class_log_prob(x0 + append_dims(sigma, x0.ndim) * noise, sigma)
        right = (log_prob.argmax(1) == cond.vector.argmax(1)).to(log_prob)
        return LossOutput(-(cond.vector * log_prob).sum(1), {"accuracy": right})
