"""A denoiser around a denoiser that counts its calls: the cost of a sampler or a guidance in function evaluations."""

from __future__ import annotations

from torch import Tensor

from flowdiff.diffusion.samplers.base import DenoiserLike
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.networks.base import Network


class CountCalls:
    """Counts how often a denoiser is called.

    `calls` is the number of batches and `rows` the number of samples evaluated, so that rows/n is the number of
    function evaluations per sample. Put it inside a guidance, which evaluates two rows per sample.

    Args:
        denoiser: the denoiser to call.
    """

    def __init__(self, denoiser: DenoiserLike):
        self.denoiser = denoiser
        self.calls = 0
        self.rows = 0

    def __call__(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        self.calls += 1
        self.rows += len(x)
        return self.denoiser(x, sigma, cond)

    @property
    def network(self) -> Network:
        """The network of the denoiser inside."""
        return self.denoiser.network
