"""The one VAE whose likelihood is known: a linear decoder, x = Wℓ + b + s·noise, ℓ ~ N(0, I).

log p(x) = log N(b, WWᵀ + s²I). With orthogonal columns of W the posterior of ℓ is diagonal, N(Wᵀ(x − b)/(w² + s²),
s²/(w² + s²)), w² = ‖column‖², and so within reach of an encoder.
"""

import math

import torch
from torch import nn

from flowdiff.models.autoencoder.decoder_laws import GAIN, GaussianLaw
from flowdiff.models.autoencoder.vae import VAE

DIM, LATENT, S = 4, 2, 0.3
W = torch.tensor([[1.0, 1.0], [1.0, -1.0], [0.5, 0.5], [0.5, -0.5]], dtype=torch.float64)  # orthogonal columns
B = torch.tensor([0.1, -0.2, 0.0, 0.3], dtype=torch.float64)


class Posterior(nn.Module):
    """x → (m, v) of the exact posterior, with the mean off by `off` and the log-variance by `wider`."""

    def __init__(self, off: float = 0.0, wider: float = 0.0):
        super().__init__()
        self.off, self.wider = off, wider

    def forward(self, x):
        power = (W**2).sum(0) + S**2
        mean = (x - B) @ W / power + self.off
        return torch.cat([mean, (S**2 / power).log().expand_as(mean) + self.wider], 1)


def vae(**wrong: float) -> VAE:
    """The optimum, or one with an encoder that is wrong by so much."""
    decoder = nn.Linear(LATENT, DIM).double()
    decoder.weight.data, decoder.bias.data = W.clone(), B.clone()
    law = GaussianLaw().double()
    law.log_scale.data.fill_(math.log(S) / GAIN)
    return VAE((DIM,), (LATENT,), Posterior(**wrong), decoder, law)


def log_prob(x):
    """The exact log p(x), nats (B,)."""
    covariance = W @ W.T + S**2 * torch.eye(DIM, dtype=torch.float64)
    return torch.distributions.MultivariateNormal(B, covariance).log_prob(x)
