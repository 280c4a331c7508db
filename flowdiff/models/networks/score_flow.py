"""The score flow: a normalised density p_σ(x | c) at every noise level, and the score as its exact gradient.

y = A_σ (x − μ)                                  whitening, exact and affine
z = f(y; e),  e = embedding of (¼ ln σ, c)       a flow
log p_σ(x|c) = log N(z; 0, I) + log|det ∂z/∂x|   nats
s = ∇ₓ log p_σ(x|c)                              by autograd, so exactly the gradient of log p
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import nullcontext

import torch
from pydantic import PositiveInt
from torch import Tensor

from flowdiff.models.conditioning import Conditioning
from flowdiff.models.flows.base import Flow
from flowdiff.models.networks.base import SCALING_IS_SCORE, FlowDensity
from flowdiff.models.networks.whitening import Whitening
from flowdiff.models.nn.directional import Gradient, directional_score
from flowdiff.models.nn.embeddings import ConditionEmbedding
from flowdiff.models.nn.sdpa import first_order
from flowdiff.noise import Generators, randn
from flowdiff.registry import register
from flowdiff.shapes import sum_except_batch


@register("network", "score_flow", requires=[SCALING_IS_SCORE])
class ScoreFlow(FlowDensity):
    """The score flow: a conditional normalizing flow whose output is the exact score of its own density.

    log p_σ(x|c) = log N(z; 0, I) + log|det ∂z/∂x|,  z = f(A_σ(x − μ); e),  s = ∇ₓ log p_σ(x|c)

    The embedding e contains ¼·ln σ, cond.vector and the mean of cond.tokens, so every flow depends on all of them. Only
    flows with inject=cross_attention read single tokens. Needs scaling=score.

    Args:
        flow: the bijection f.
        whitening: the map x → A_σ(x − μ) in front of the flow.
        shape: shape of one sample.
        cond_dim: width of cond.vector (B, cond_dim), 0 without a vector.
        gradient: how a loss of the score is differentiated in the parameters: double_backward | directional |
            forward_mode (flowdiff/models/nn/directional.py).
        token_dim: width of cond.tokens (B, L, token_dim), 0 without tokens.
        embed_dim: width of the embedding e, ≥ 1.
    """

    def __init__(
        self,
        flow: Flow,
        whitening: Whitening,
        shape: tuple[int, ...],
        cond_dim: int,
        gradient: Gradient = "double_backward",
        token_dim: int = 0,
        *,
        embed_dim: PositiveInt,
    ):
        super().__init__()
        self.shape = tuple(shape)
        self.gradient = gradient
        self.whitening = whitening
        self.flow = flow
        self.embedding = ConditionEmbedding(embed_dim, cond_dim, token_dim)
        self.twice_differentiable = flow.twice_differentiable

    def fit(self, batches: Iterable[Tensor]) -> None:
        """Measure the whitening's statistics."""
        self.whitening.fit(batches)

    def log_prob(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        """log p_σ(x|c) in nats, (B,)."""
        with full_precision(x):
            y, logdet_whitening = self.whitening(x, sigma)
        z, logdet = self.flow(y, self._embed(sigma, cond))
        log_base = -0.5 * sum_except_batch(z**2) - 0.5 * math.prod(self.shape) * math.log(2 * math.pi)
        return log_base + logdet + logdet_whitening

    def forward(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        """The score ∇ₓ log p_σ(x|c), shaped like x; part of the autograd graph of the parameters only in training."""
        return self.log_prob_and_score(x, sigma, cond)[1]

    def log_prob_and_score(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> tuple[Tensor, Tensor]:
        """log p_σ(x|c) in nats, (B,), and the score, shaped like x, from one evaluation of the flow."""
        differentiable = self.training and torch.is_grad_enabled()
        twice = differentiable and self.gradient == "double_backward"
        with torch.enable_grad(), nullcontext() if twice else first_order():
            inner = x.detach().clone().requires_grad_(True)
            log_prob = self.log_prob(inner, sigma, cond)
            with full_precision(x):  # the backward pass of the whitening and the embedding
                (score,) = torch.autograd.grad(log_prob.sum(), inner, create_graph=twice, retain_graph=differentiable)
        if not differentiable:
            return log_prob.detach(), score
        if not twice:
            forward_mode = self.gradient == "forward_mode"
            parameters = [p for p in self.parameters() if p.requires_grad]
            score = directional_score(self.log_prob, parameters, forward_mode, score, x.detach(), sigma, cond)
        return log_prob, score

    @torch.no_grad()
    def sample(self, sigma: Tensor, cond: Conditioning | None = None, generator: Generators = None) -> Tensor:
        """Samples x ~ p_σ(·|c), (B, *shape), one for each entry of sigma (B,), by inverting the flow."""
        z = randn((len(sigma), *self.shape), generator, device=sigma.device, dtype=sigma.dtype)
        return self.decode(z, sigma, cond)

    def encode(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        """The base point z of x, shaped like x; z ~ N(0, I) if x ~ p_σ(·|c)."""
        with full_precision(x):
            y, _ = self.whitening(x, sigma)
        return self.flow(y, self._embed(sigma, cond))[0]

    @torch.no_grad()
    def decode(self, z: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        """The sample x of a base point z, shaped like z, by inverting the flow."""
        y, _ = self.flow.inverse(z, self._embed(sigma, cond))
        with full_precision(z):
            return self.whitening.inverse(y, sigma)[0]

    def _embed(self, sigma: Tensor, cond: Conditioning | None) -> Conditioning:
        with full_precision(sigma):  # bfloat16 cannot resolve neighbouring noise levels
            return self.embedding(0.25 * sigma.log(), cond)


def full_precision(x: Tensor) -> torch.autocast:
    """Context without autocast: exact operations keep full precision; only the nets inside the flow use half."""
    return torch.autocast(x.device.type, enabled=False)
