"""Mixture-of-logistics flow: couplings whose transform is the logit of a mixture's distribution function.

    F(x) = Σ_k π_k·σ(u_k),   u_k = (x − μ_k)·e^{−s_k}
    y = ((1 − w)·x + w·logit F(x))·e^a + b

σ is the logistic function. A net gives the mixture, a, b and the strength w ∈ (−w₀, 1), which is 0 at the start. With
w = 1 it is the transform of Flow++. That transform is the identity if all components are equal, but then their
gradients are equal too, and the components never separate. With a strength the components differ from the start, and
the gradient of w depends on how they differ. The logarithms

    log F = logsumexp_k(log π_k + log σ(u_k)),   log(1 − F) = logsumexp_k(log π_k + log σ(−u_k))

are exact in both tails, where logit F = log F − log(1 − F) becomes affine, with the slope of the widest component.
"""

from __future__ import annotations

import math
from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from flowdiff.errors import ConfigurationError, InverseDidNotConverge
from flowdiff.models.activations import Activation
from flowdiff.models.flows.coupling import Transform
from flowdiff.models.flows.multiscale import CouplingFlow, Form
from flowdiff.models.nn.inject import Inject
from flowdiff.models.nn.residual import NetSettings
from flowdiff.registry import register
from flowdiff.shapes import append_dims

# With all parameters 0 the means are evenly spaced from −1.5 to 1.5 and the scales about 1/e. The input is whitened.
SPREAD, LOG_SCALE = 1.5, -1.0
MIN_SLOPE = 0.01  # of the blend of x and logit F(x): the density stays above 0 between its modes
STRENGTH_GAIN = 4.0  # factor of w's parameter: dw/dparameter is 0.3 at the start
MAX_STEPS = 100  # of the inverse; bisection alone needs 60 in float64


@register("flow", "mixture_logistic")
class MixtureLogistic(CouplingFlow):
    """Mixture-of-logistics couplings: over random halves of a vector, or multi-scale with self-attention for images.

    z_moved = ((1 − w)·x_moved + w·logit F(x_moved))·e^a + b,  F a mixture of logistics from a net of x_kept and (σ, c)

    The flow starts as the identity and is as smooth as its activation. The inverse is Newton's method kept inside a
    bracket, accurate to rounding and differentiable. The input should be whitened. The halves are drawn from torch's
    global generator and kept in the state dict.

    Args:
        shape: shape of one sample, (D,) or (C, H, W).
        embed_dim: width of the embedding e = cond.vector (B, embed_dim).
        activation: nonlinearity of the nets.
        token_dim: width of cond.tokens (B, L, token_dim), read by inject=cross_attention; 0 without tokens.
        form: vector | image | auto; auto is image for images with even sides and more than 256 dimensions.
        n_flows: couplings, of each level for images, ≥ 1; two of them transform every dimension once.
        levels: scales of form=image, ≥ 1, each halves the sides; None: as many as the sides allow, at most 3.
        hidden: width of each coupling's net, ≥ 1, a multiple of heads.
        depth: residual blocks of each coupling's net, ≥ 1.
        heads: heads of the attention among the pixels after each block of an image's nets, ≥ 1.
        components: K of each mixture, ≥ 1; one component is an affine coupling.
        scale_bound: bound > 0 of |s_k|, |a| and the log-scales of the split priors of form=image, in nats.
        inject: how (σ, c) enters the nets, film | concat | cross_attention.
        checkpoint: recompute each coupling in the backward pass instead of storing its activations.

    Raises:
        ConfigurationError: heads does not divide hidden.
        ConfigurationError: a vector has fewer than two dimensions, or the sides of an image cannot be halved.

    Source: Ho, Chen, Srinivas, Duan, Abbeel, Flow++: Improving Flow-Based Generative Models with Variational
    Dequantization and Architecture Design, 2019.
    """

    forward_differentiable = False  # torch cannot differentiate logsumexp forward and then backward
    inverse_by = "Newton's method inside a bracket"

    def __init__(
        self,
        shape: tuple[int, ...],
        embed_dim: int,
        activation: Activation,
        token_dim: int = 0,
        *,
        form: Form,
        n_flows: PositiveInt,
        levels: PositiveInt | None,
        hidden: PositiveInt,
        depth: PositiveInt,
        heads: PositiveInt,
        components: PositiveInt,
        scale_bound: PositiveFloat,
        inject: Inject,
        checkpoint: bool,
    ):
        if hidden % heads:
            raise ConfigurationError(
                f"flow=mixture_logistic was given flow.hidden={hidden} and flow.heads={heads}: each head takes an "
                f"equal part of the width, so take a hidden that is a multiple of {heads}, or heads=1."
            )
        transform = MixtureCDF(components, scale_bound)
        nets = NetSettings(hidden, depth, embed_dim, activation, inject, token_dim)
        super().__init__(
            "mixture_logistic", shape, form, n_flows, levels, transform, nets, scale_bound, checkpoint, heads
        )


class Blend(NamedTuple):
    """T(x) = (1 − w)·x + w·logit F(x), F a mixture of K logistics.

    w is (B, N, …), the other fields are (B, K, N, …).
    """

    w: Tensor
    log_weight: Tensor
    mean: Tensor
    log_scale: Tensor

    def value(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """T(x) and log T′(x), like x (B, N, …)."""
        u = (x[:, None] - self.mean) * (-self.log_scale).exp()
        below, above = self.log_weight + F.logsigmoid(u), self.log_weight + F.logsigmoid(-u)
        logit = torch.logsumexp(below, 1) - torch.logsumexp(above, 1)  # log F − log(1 − F)
        # The slope F′/F + F′/(1 − F) as means over k: all terms are positive, while far out the differences of log F′,
        # log F and log(1 − F) are nothing but rounding.
        each = torch.softmax(below, 1) * torch.sigmoid(-u) + torch.softmax(above, 1) * torch.sigmoid(u)
        slope = (each * (-self.log_scale).exp()).sum(1)
        return x + self.w * (logit - x), (1 - self.w + self.w * slope).log()

    def root(self, v: Tensor) -> Tensor:
        """x with T(x) = v, accurate to rounding; carries no gradient.

        Raises InverseDidNotConverge if it is not found, for example with NaN or Inf in v or in the mixture.
        """
        # logit F(x) lies between the smallest and the largest u_k, so the root lies between the roots of the K straight
        # lines that T becomes with one u_k instead of logit F.
        w = self.w[:, None]
        slope = w * (-self.log_scale).exp()
        roots = (v[:, None] + slope * self.mean) / (1 - w + slope)
        low, high = roots.amin(1), roots.amax(1)
        x = (self.log_weight.exp() * roots).sum(1)
        eps = 4 * torch.finfo(v.dtype).eps
        last = torch.full_like(v, torch.inf)
        for _ in range(MAX_STEPS):
            value, log_slope = self.value(x)
            error = value - v
            newton = x - error * torch.exp(-log_slope)
            low, high = torch.where(error < 0, x, low), torch.where(error > 0, x, high)
            # Converged to rounding: in the value if the slope is small, in x if it is large.
            room = eps * (1 + x.abs())
            done = (error.abs() <= eps * (1 + v.abs())) | ((newton - x).abs() <= room) | (high - low <= room)
            if done.all():
                return x
            # Newton's step only if it stays inside the bracket and the error halves: on a staircase it may oscillate.
            trusted = (newton > low) & (newton < high) & (error.abs() <= last / 2)
            x = torch.where(done, x, torch.where(trusted, newton, (low + high) / 2))
            last = error.abs()
        raise InverseDidNotConverge(
            f"the inverse of a mixture of logistics was not found for {int((~done).sum())} of {done.numel()} numbers "
            f"in {MAX_STEPS} steps: look for NaN or Inf in its input, or lower flow.scale_bound."
        )


@final
class MixtureCDF(Transform):
    """The blend T of x and the logit of a mixture of logistics, then an affine map; C^∞.

    y = T(x)·e^a + b,  T(x) = (1 − w)·x + w·logit F(x),  params (log π, μ, s, a, b, w), 3K + 3 of them

    π is a softmax, s and a are c·tanh(·/c), and w is a sigmoid from −w₀ to 1 − 0.01 with w₀ = ½/(e^c − 1). The slope of
    logit F lies in (0, e^c), that of T in (0.01, e^c).

    Args:
        components: K ≥ 1.
        scale_bound: c > 0, in nats.
    """

    def __init__(self, components: int, scale_bound: float):
        self.num_params = 3 * components + 3
        self.components = components
        self.scale_bound = scale_bound

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        blend, a, b = self._unpack(params)
        v, log_slope = blend.value(x)
        return v * a.exp() + b, log_slope + a

    def inverse(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        blend, a, b = self._unpack(params)
        v = (y - b) * (-a).exp()
        with torch.no_grad():
            x = blend.root(v)
        if torch.is_grad_enabled():
            # dx = (dv − ∂T)/T′, the differential of the implicit function, is the differential of Newton's step. Its
            # value is rounding and is left out. One step is exact to first order, two steps to third order.
            for _ in range(2):
                value, log_slope = blend.value(x)
                step = (v - value) * torch.exp(-log_slope)
                x = x + (step - step.detach())
        _, log_slope = blend.value(x)
        return x, -(log_slope + a)

    def _unpack(self, params: Tensor) -> tuple[Blend, Tensor, Tensor]:
        K = self.components
        mixture, (a, b, w) = params[:, : 3 * K], params[:, 3 * K :].unbind(1)
        logits, mean, log_scale = mixture.unflatten(1, (3, K)).unbind(1)
        spread = torch.arange(1 - K, K, 2, dtype=params.dtype, device=params.device) * (SPREAD / max(K - 1, 1))
        blend = Blend(
            self._strength(w),
            torch.log_softmax(logits, 1),
            mean + append_dims(spread, mean.ndim - 1),
            self._bounded(log_scale + LOG_SCALE),
        )
        return blend, self._bounded(a), b

    def _bounded(self, s: Tensor) -> Tensor:
        return self.scale_bound * torch.tanh(s / self.scale_bound)

    def _strength(self, w: Tensor) -> Tensor:
        w0, w_max = 0.5 / math.expm1(self.scale_bound), 1 - MIN_SLOPE  # slopes stay above ½ for w < 0
        return (w0 + w_max) * torch.sigmoid(STRENGTH_GAIN * w + math.log(w0 / w_max)) - w0
