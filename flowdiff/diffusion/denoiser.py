"""The denoiser D(x, σ, c) ≈ E[x0 | x]: a network behind its scaling.

    D = c_skip·x + c_out·F(c_in·x, c_noise, c),        s = (D − x)/σ²   (Tweedie)

For a score flow F is the score itself and the scaling is (1, σ², 1, σ): D = x + σ²·∇ₓ log p_σ(x|c).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flowdiff.diffusion.scalings import Scaling
from flowdiff.errors import NotADensity
from flowdiff.models.conditioning import Conditioning
from flowdiff.shapes import append_dims


class Denoiser(nn.Module):
    """D(x, σ, c) from a network and a scaling; `sigma_data`, the data's root mean square, is a buffer measured later.

    x (B, …) noised data, sigma (B,) > 0, cond a Conditioning or None.
    """

    def __init__(self, network: nn.Module, scaling: Scaling):
        super().__init__()
        self.network = network
        self.scaling = scaling
        self.register_buffer("sigma_data", torch.ones(()))

    def forward(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        """D, shaped like x."""
        c_skip, c_out, c_in, c_noise = self.scaling(sigma, self.sigma_data)
        output = self.network(x * append_dims(c_in, x.ndim), c_noise, cond)
        return append_dims(c_skip, x.ndim) * x + append_dims(c_out, x.ndim) * output

    def score(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        """s = (D − x)/σ², shaped like x; for a score flow the network's own output."""
        if self.is_density:
            return self.network(x, sigma, cond)
        return (self(x, sigma, cond) - x) / append_dims(sigma**2, x.ndim)

    @property
    def is_density(self) -> bool:
        """Whether the network is a normalised density, i.e. has `log_prob` and `sample`."""
        return hasattr(self.network, "log_prob")

    def log_prob(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        """log p_σ(x|c) in nats, (B,); raises NotADensity for a raw network."""
        return self._density().log_prob(x, sigma, cond)

    def log_prob_and_denoised(
        self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None
    ) -> tuple[Tensor, Tensor]:
        """log p_σ(x|c) (B,) and D from one evaluation of the flow; raises NotADensity for a raw network."""
        log_prob, score = self._density().log_prob_and_score(x, sigma, cond)
        return log_prob, x + append_dims(sigma**2, x.ndim) * score

    def _density(self) -> nn.Module:
        if not self.is_density:
            raise NotADensity(
                f"network={type(self.network).__name__} has no log-density: only network=score_flow is one, "
                "take loss=denoising, start=noise and no likelihood with other networks."
            )
        return self.network
