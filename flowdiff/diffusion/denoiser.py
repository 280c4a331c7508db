"""The denoiser D(x, σ, c) ≈ E[x0 | x]: a network and its scaling.

    D = c_skip·x + c_out·F(c_in·x, c_noise, c),        s = (D − x)/σ²   (Tweedie)

For a score flow F is the score itself and the scaling is (1, σ², 1, σ): D = x + σ²·∇ₓ log p_σ(x|c).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from flowdiff.diffusion.scalings import Scaling
from flowdiff.errors import NotADensity
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.networks.base import Density, Network
from flowdiff.shapes import append_dims


class Denoise(Protocol):
    """A function that denoises: a Denoiser, a model, or a guidance around one."""

    def __call__(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None, /) -> Tensor:
        """D, like x, for x (B, …), sigma (B,) and the condition of B samples."""


class Denoiser(nn.Module):
    """D(x, σ, c) from a network and a scaling.

    x (B, …) noised data, sigma (B,) > 0, cond a Conditioning or None. `sigma_data`, the root mean square of the data,
    is a buffer that is measured before training.

    Args:
        network: F.
        scaling: c_skip, c_out, c_in and c_noise.
    """

    sigma_data: Tensor

    def __init__(self, network: Network, scaling: Scaling):
        super().__init__()
        self.network = network
        self.scaling = scaling
        self.register_buffer("sigma_data", torch.ones(()))

    @property
    def is_consistency(self) -> bool:
        """Whether D is a consistency function and no estimate of the clean data."""
        return self.scaling.boundary is not None

    def forward(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        """D, shaped like x."""
        c_skip, c_out, c_in, c_noise = self.scaling(sigma, self.sigma_data)
        output = self.network(x * append_dims(c_in, x.ndim), c_noise, cond)
        return append_dims(c_skip, x.ndim) * x + append_dims(c_out, x.ndim) * output

    def score(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        """s = (D − x)/σ², shaped like x; the network's own output if it is a density."""
        if self.is_density:
            return self.network(x, sigma, cond)
        return (self(x, sigma, cond) - x) / append_dims(sigma**2, x.ndim)

    @property
    def is_density(self) -> bool:
        """Whether the network is a normalised density."""
        return isinstance(self.network, Density)

    @property
    def density(self) -> Density:
        """The network as a density; NotADensity if it is not one."""
        if not isinstance(self.network, Density):
            raise NotADensity(
                f"network={type(self.network).__name__} does not have a log-density, only network=score_flow has one: "
                "use loss=denoising, start=noise and no likelihood with other networks."
            )
        return self.network

    def log_prob(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        """log p_σ(x|c) in nats, (B,); NotADensity for a raw network."""
        return self.density.log_prob(x, sigma, cond)

    def log_prob_and_denoised(
        self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None
    ) -> tuple[Tensor, Tensor]:
        """log p_σ(x|c) in nats, (B,), and D like x, from one evaluation of the flow; NotADensity for a raw network."""
        log_prob, score = self.density.log_prob_and_score(x, sigma, cond)
        return log_prob, x + append_dims(sigma**2, x.ndim) * score
