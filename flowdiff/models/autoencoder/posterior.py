"""The posterior that an encoder gives for an image: a diagonal Gaussian over the latent ℓ, and its terms in the bound.

q(ℓ|x) = N(m(x), diag e^{v(x)}),    ℓ = m + e^{v/2}·ε,  ε ~ N(0, I)    (reparameterised: differentiable in m and v)
KL(q ‖ N(0, I)) = Σᵢ ½ (mᵢ² + e^{vᵢ} − 1 − vᵢ)
log p(x) ≥ E_q[log p(x|ℓ) + log p(ℓ) − log q(ℓ|x)]                     for any prior p(ℓ)

Source: Kingma, Welling, Auto-encoding variational Bayes, 2014; Rezende, Mohamed, Wierstra, Stochastic backpropagation,
2014.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from flowdiff.shapes import sum_except_batch

LOG_VARIANCE = (-30.0, 20.0)  # range of v in which e^v and its gradient are finite in float32


class Posterior(NamedTuple):
    """q(ℓ|x) of B images: mean and log_variance (B, *latent_shape)."""

    mean: Tensor
    log_variance: Tensor

    @classmethod
    def of(cls, mean: Tensor, log_variance: Tensor) -> Posterior:
        """From the outputs of an encoder; the log-variance is clamped to LOG_VARIANCE."""
        return cls(mean, log_variance.clamp(*LOG_VARIANCE))

    def sample(self, noise: Tensor) -> Tensor:
        """ℓ for noise ε ~ N(0, I), shaped like the mean."""
        return self.mean + (0.5 * self.log_variance).exp() * noise

    def kl(self) -> Tensor:
        """KL(q ‖ N(0, I)) of each dimension, (B, *latent_shape) nats, ≥ 0."""
        # expm1, because in e^v − 1 − v all digits cancel if the posterior is close to the prior
        return 0.5 * (self.mean**2 + torch.expm1(self.log_variance) - self.log_variance)

    def log_prob(self, latent: Tensor) -> Tensor:
        """log q(ℓ|x) in nats, (B,)."""
        error = (latent - self.mean) ** 2 * (-self.log_variance).exp()
        return -0.5 * sum_except_batch(error + self.log_variance + math.log(2 * math.pi))


def standard_normal(latent: Tensor) -> Tensor:
    """log N(ℓ; 0, I) in nats, (B,)."""
    return -0.5 * sum_except_batch(latent**2 + math.log(2 * math.pi))
