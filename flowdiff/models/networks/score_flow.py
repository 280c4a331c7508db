"""The score flow: a normalised density p_σ(x | c) at every noise level, and the score as its exact gradient.

y = A_σ (x − μ)                                  whitening, exact and affine
z = f(γ·y; e, γ²)/γ                              a flow, γ(σ) its gate, e the embedding of (¼ ln σ, c)
log p_σ(x|c) = log N(z; 0, I) + log|det ∂z/∂x|   nats
s = ∇ₓ log p_σ(x|c)                              by autograd, so exactly the gradient of log p

A base of components ≥ 1 is a mixture of Gaussians q_σ instead of N(0, I), at x₁ = A_σ⁻¹z + μ:
log p_σ(x|c) = log q_σ(x₁|c) + log|det ∂x₁/∂x|
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import replace

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from flowdiff.models.conditioning import Conditioning
from flowdiff.models.flows.base import Flow
from flowdiff.models.flows.gate import gate as gate_at
from flowdiff.models.flows.gate import log_saturating
from flowdiff.models.flows.guided import GuidanceOrder
from flowdiff.models.flows.shift import Shift
from flowdiff.models.networks.base import SCALING_IS_SCORE, FlowDensity
from flowdiff.models.networks.mixture_base import MixtureBase
from flowdiff.models.networks.whitening import Whitening
from flowdiff.models.nn.directional import Gradient, directional_score
from flowdiff.models.nn.embeddings import ConditionEmbedding
from flowdiff.models.nn.sdpa import first_order
from flowdiff.noise import Generators, randn
from flowdiff.registry import register
from flowdiff.shapes import append_dims, sum_except_batch


@register("network", "score_flow", requires=[SCALING_IS_SCORE])
class ScoreFlow(FlowDensity):
    """The score flow: a conditional normalizing flow whose output is the exact score of its own density.

    log p_σ(x|c) = log N(z; 0, I) + log|det ∂z/∂x|,  z = f(γ·A_σ(x − μ); e, γ²)/γ,  s = ∇ₓ log p_σ(x|c)

    The embedding e contains ¼·ln σ, cond.vector and the mean of cond.tokens, so every flow depends on all of them. Only
    flows with inject=cross_attention read single tokens. Needs scaling=score.

    The gate γ² = v/(v + σ²), v the mean variance of the data, multiplies the parameters of the flow, so that D stays
    within a bounded multiple of the data's deviation of the Wiener filter at every σ, whatever the parameters are; and
    e is that of a σ̃ that saturates where a sample is lost in noise (flowdiff/models/flows/gate.py). There is no gate,
    γ = 1 and σ̃ = σ, with gate=false, with whitening=identity, which does not make y standard at high noise, and for a
    flow that does not declare `takes_gate`. In front of a flow that declares `shares_weights` the gate brings a shift
    of each number by the class's mean, which is measured, and by e. Without it such a flow cannot contain the mean of a
    class (flowdiff/models/flows/shift.py).

    With components ≥ 1 the whitening is undone behind the flow, and the base is a mixture of that many Gaussians for
    each class, fitted to the data and convolved with the noise, instead of N(0, I). Untrained, p_σ is that mixture
    (flowdiff/models/networks/mixture_base.py). It is for at most 256 dimensions, and does not go with guidance inside
    the flow's own sampling.

    Args:
        flow: the bijection f.
        whitening: the map x → A_σ(x − μ) in front of the flow.
        shape: shape of one sample.
        cond_dim: width of cond.vector (B, cond_dim), 0 without a vector.
        gradient: how a loss of the score is differentiated in the parameters: double_backward | directional |
            forward_mode (flowdiff/models/nn/directional.py).
        token_dim: width of cond.tokens (B, L, token_dim), 0 without tokens.
        num_classes: number of classes of the data, None without classes.
        embed_dim: width of the embedding e, ≥ 1.
        gate: whether there is a gate.
        components: Gaussians of a class in the base, ≥ 1; 0: the base is N(0, I).

    Raises:
        ConfigurationError: components ≥ 1 and more than 256 dimensions.
    """

    takes_hint = True

    variance: Tensor  # v, with a gate only

    def __init__(
        self,
        flow: Flow,
        whitening: Whitening,
        shape: tuple[int, ...],
        cond_dim: int,
        gradient: Gradient = "double_backward",
        token_dim: int = 0,
        num_classes: int | None = None,
        *,
        embed_dim: PositiveInt,
        gate: bool,
        components: NonNegativeInt,
    ):
        super().__init__()
        self.shape = tuple(shape)
        self.gradient = gradient
        self.whitening = whitening
        self.flow = flow
        self.embedding = ConditionEmbedding(embed_dim, cond_dim, token_dim)
        self.twice_differentiable = flow.twice_differentiable
        self.base = MixtureBase(shape, num_classes, components) if components else None
        self.normal_base = self.base is None
        # Guidance mixes the maps of c and of ∅, which is no guidance where their bases differ, too.
        self.guidance_orders = flow.guidance_orders if self.base is None else ()
        self.gated = gate and flow.takes_gate and whitening.standardises
        if self.gated:
            self.register_buffer("variance", torch.ones(()))
        self.shift = Shift(self.shape, embed_dim, num_classes) if self.gated and flow.shares_weights else None
        if self.shift is not None:
            self.register_load_state_dict_pre_hook(_no_shift_is_a_shift_of_zero)

    def fit(self, batches: Iterable[Tensor]) -> None:
        """Measure the whitening's statistics and, for the gate, the mean variance of the data, in one pass."""
        if not self.gated:
            self.whitening.fit(batches)
            return
        moments = Moments()
        self.whitening.fit(moments.of(batches))
        self.variance.fill_(moments.mean_variance())

    def fit_classes(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Fit the mixture of the base, or measure the means of the classes for the shift in front of the flow."""
        if self.base is not None:
            self.base.fit(batches)
        elif self.shift is not None and len(self.shift.means):
            mean, _ = self.whitening.inverse(
                torch.zeros_like(self.shift.means[:1]), torch.ones_like(self.variance)[None]
            )
            self.shift.fit(batches, mean[0], self.variance)

    def log_prob(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        """log p_σ(x|c) in nats, (B,)."""
        u, logdet, e = self._through_flow(x, sigma, cond)
        if self.base is not None:
            with full_precision(x):
                moved, logdet_back = self.whitening.inverse(_divided(u, e), sigma)
                return self.base.log_prob(moved, sigma, e.label) + logdet + logdet_back
        weight = (
            -0.5 if e.gate is None else -0.5 / e.gate
        )  # ‖z‖² = ‖u‖²/γ², without a z that autograd would have to pass
        log_base = weight * sum_except_batch(u**2) - 0.5 * math.prod(self.shape) * math.log(2 * math.pi)
        return log_base + logdet

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
        if self.base is None:
            z = randn((len(sigma), *self.shape), generator, device=sigma.device, dtype=sigma.dtype)
        else:
            label = None if cond is None else cond.label
            z, _ = self.whitening(self.base.sample(sigma, label, generator).view(-1, *self.shape), sigma)
        return self.decode(z, sigma, cond)

    def encode(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        """The base point z of x, shaped like x; z ~ N(0, I) if x ~ p_σ(·|c) and components=0."""
        u, _, e = self._through_flow(x, sigma, cond)
        return _divided(u, e)

    def decode(self, z: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        """The sample x of a base point z, shaped like z, by inverting the flow."""
        return self._from_base(z, sigma, self._embed(sigma, cond))

    def log_base(self, z: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        """The log-density of the base at z in nats, (B,): of N(0, I), or of the whitened mixture."""
        if self.base is None:
            return super().log_base(z, sigma, cond)
        with full_precision(z):
            moved, logdet = self.whitening.inverse(z, sigma)
            return self.base.log_prob(moved, sigma, self._embed(sigma, cond).label) + logdet

    @torch.no_grad()
    def sample_guided(
        self,
        sigma: Tensor,
        cond: Conditioning,
        null: Conditioning,
        weight: float,
        order: GuidanceOrder,
        generator: Generators = None,
    ) -> Tensor:
        """Samples (B, *shape) of the flow guided inside its inverse; the flow inverts a batch of 2B, with c and ∅."""
        z = randn((len(sigma), *self.shape), generator, device=sigma.device, dtype=sigma.dtype)
        pairs = self._embed(torch.cat([sigma, sigma]), Conditioning.cat([cond, null]))
        ends = sigma.new_tensor([weight if order == "all" else 0.0, weight]).expand(2 * len(sigma), 2)
        both = self._from_base(torch.cat([z, z]), torch.cat([sigma, sigma]), replace(pairs, guidance=ends))
        return both[: len(sigma)]

    def _through_flow(self, x: Tensor, sigma: Tensor, cond: Conditioning | None) -> tuple[Tensor, Tensor, Conditioning]:
        """u = γ·z, shaped like x, for the base point z, log|det ∂z/∂x| (B,), and the condition e of the flow."""
        e = self._embed(sigma, cond)
        with full_precision(x):
            u, logdet_whitening = self.whitening(x, sigma, e.gate)
        if self.shift is not None:
            u, _ = self.shift(u, e)
        u, logdet = self.flow(u, e)
        return u, logdet + logdet_whitening, e

    def _from_base(self, z: Tensor, sigma: Tensor, e: Conditioning) -> Tensor:
        """The sample x of a base point, shaped like z, for the condition e of the flow."""
        if e.gate is None:
            y, _ = self.flow.inverse(z, e)
        else:
            gamma = append_dims(e.gate.sqrt(), z.ndim)
            u, _ = self.flow.inverse(gamma * z, e)
            if self.shift is not None:
                u, _ = self.shift.inverse(u, e)
            y = u / gamma
        with full_precision(z):
            return self.whitening.inverse(y, sigma)[0]

    def _embed(self, sigma: Tensor, cond: Conditioning | None) -> Conditioning:
        with full_precision(sigma):  # bfloat16 cannot resolve neighbouring noise levels
            if not self.gated:
                return self.embedding(0.25 * sigma.log(), cond)
            level = log_saturating(math.prod(self.shape) * self.variance, sigma)
            return replace(self.embedding(0.25 * level, cond), gate=gate_at(self.variance, sigma))


def _divided(u: Tensor, e: Conditioning) -> Tensor:
    """The base point z = u/γ."""
    return u if e.gate is None else u / append_dims(e.gate.sqrt(), u.ndim)


def _no_shift_is_a_shift_of_zero(model: ScoreFlow, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Give weights that were saved before there was a shift one that is 0, with which the model is what it was."""
    assert model.shift is not None
    for key, value in model.shift.state_dict(prefix=f"{prefix}shift.").items():
        state.setdefault(key, torch.zeros_like(value))


class Moments:
    """The first two moments of each number of a sample, over batches that something else reads."""

    def __init__(self) -> None:
        self.count = 0
        self.total = self.squares = torch.zeros((), dtype=torch.float64)

    def of(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """The batches (B, …) themselves; each is counted when it is read."""
        for x in batches:
            numbers = x.double()
            self.count += len(x)
            self.total = self.total + numbers.sum(0)
            self.squares = self.squares + numbers.square().sum(0)
            yield x

    def mean_variance(self) -> float:
        """The variance about the mean of each number, averaged; at least a millionth of the mean square."""
        square = self.squares / self.count
        variance = square - (self.total / self.count) ** 2
        return float(torch.maximum(variance.mean(), 1e-6 * square.mean()))  # the gate divides by it


def full_precision(x: Tensor) -> torch.autocast:
    """Context without autocast: exact operations keep full precision; only the nets inside the flow use half."""
    return torch.autocast(x.device.type, enabled=False)
