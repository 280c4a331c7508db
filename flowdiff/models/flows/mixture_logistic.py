"""Mixture-of-logistics flow: couplings whose transform is bent by the distribution function of a mixture.

    F(x) = Σ_k π_k·σ(u_k),   u_k = (x − μ_k)·e^{−s_k}
    y = ((1 − w)·x + w·logit F(x))·e^a + b

σ is the logistic function. A net gives the mixture, a, b and the strength w ∈ (−w₀, 1), which is 0 at the start. With
w = 1 it is the transform of Flow++. That is the identity where all components are equal, but then so are their
gradients, and they never part; with a strength they differ from the start, and how is felt at once. The logarithms

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

# Where the parameters are 0: means evenly from −1.5 to 1.5, scales of about 1/e. The input is whitened.
SPREAD, LOG_SCALE = 1.5, -1.0
MIN_SLOPE = 0.01  # of the blend of x and logit F(x), which leaves gaps in the density a floor
GAIN = 4.0  # of w's parameter, which makes dw/dparameter 0.3 at the start
MOST_STEPS = 100  # of the inverse; bisection alone needs 60 in float64


@register("flow", "mixture_logistic")
class MixtureLogistic(CouplingFlow):
    """Mixture-of-logistics couplings, of vectors over random halves, of images multi-scale with self-attention.

    x (B, *shape) → z like x, log-det (B,) in nats; the identity at the start, as smooth as its activation. The inverse
    is Newton's method kept inside a bracket, to rounding, and differentiable. The input should be whitened.
    form, n_flows, levels, hidden, depth, inject, checkpoint: as in realnvp. components: K of each mixture; scale_bound:
    |s_k|, |a| and the log-scales of an image's split priors stay below it (nats); heads: of the attention among the
    pixels after each block of an image's nets, a divisor of hidden.
    Raises ConfigurationError if heads does not divide hidden, if a vector has fewer than two dimensions, or if an
    image's sides cannot be halved.
    Source: Ho, Chen, Srinivas, Duan, Abbeel, "Flow++", 2019.
    """

    forward_differentiable = False  # torch's logsumexp is not, and then backward
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
                f"equal part of the width, so give a hidden that is a multiple of {heads}, or heads=1."
            )
        transform = MixtureCDF(components, scale_bound)
        nets = NetSettings(hidden, depth, embed_dim, activation, inject, token_dim)
        super().__init__(
            "mixture_logistic", shape, form, n_flows, levels, transform, nets, scale_bound, checkpoint, heads
        )


class Blend(NamedTuple):
    """T(x) = (1 − w)·x + w·logit F(x), F a mixture of K logistics; w is (B, N, …), the rest (B, K, N, …)."""

    w: Tensor
    log_weight: Tensor
    mean: Tensor
    log_scale: Tensor

    def value(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """T(x) and log T′(x), like x (B, N, …)."""
        u = (x[:, None] - self.mean) * (-self.log_scale).exp()
        below, above = self.log_weight + F.logsigmoid(u), self.log_weight + F.logsigmoid(-u)
        logit = torch.logsumexp(below, 1) - torch.logsumexp(above, 1)  # log F − log(1 − F)
        # Its slope F′/F + F′/(1 − F) as means over k: positive terms only, while the difference of log F′, log F and
        # log(1 − F) is all rounding far out.
        each = torch.softmax(below, 1) * torch.sigmoid(-u) + torch.softmax(above, 1) * torch.sigmoid(u)
        slope = (each * (-self.log_scale).exp()).sum(1)
        return x + self.w * (logit - x), (1 - self.w + self.w * slope).log()

    def root(self, v: Tensor) -> Tensor:
        """x with T(x) = v, as accurate as rounding lets it be; carries no gradient.

        Raises InverseDidNotConverge if it is not found, as with NaN or Inf in v or the mixture.
        """
        # logit F(x) lies between the least and the largest u_k, so the root lies between those of the K straight lines
        # that T is with one u_k in its place.
        w = self.w[:, None]
        bend = w * (-self.log_scale).exp()
        of_each = (v[:, None] + bend * self.mean) / (1 - w + bend)
        low, high = of_each.amin(1), of_each.amax(1)
        x = (self.log_weight.exp() * of_each).sum(1)
        eps = 4 * torch.finfo(v.dtype).eps
        last = torch.full_like(v, torch.inf)
        for _ in range(MOST_STEPS):
            value, log_slope = self.value(x)
            error = value - v
            newton = x - error * torch.exp(-log_slope)
            low, high = torch.where(error < 0, x, low), torch.where(error > 0, x, high)
            # To rounding: in the value, where the slope is small, or in x, where it is large.
            room = eps * (1 + x.abs())
            done = (error.abs() <= eps * (1 + v.abs())) | ((newton - x).abs() <= room) | (high - low <= room)
            if done.all():
                return x
            # Newton's step only inside the bracket and while it pays: on a staircase it may go back and forth.
            trusted = (newton > low) & (newton < high) & (error.abs() <= last / 2)
            x = torch.where(done, x, torch.where(trusted, newton, (low + high) / 2))
            last = error.abs()
        raise InverseDidNotConverge(
            f"the inverse of a mixture of logistics was not found for {int((~done).sum())} of {done.numel()} numbers "
            f"in {MOST_STEPS} steps: look for NaN or Inf in its input, or lower flow.scale_bound."
        )


@final
class MixtureCDF(Transform):
    """y = T(x)·e^a + b, T the blend of x and the logit of a mixture of `components` logistic distributions; C^∞.

    params (log π, μ, s, a, b, w), K + K + K + 1 + 1 + 1: π is a softmax, s and a are c·tanh(·/c), c = `scale_bound`
    (nats), and w a sigmoid from −w₀ to 1 − 0.01, with w₀ = ½/(e^c − 1). The slope of logit F lies in (0, e^c), that of
    T in (0.01, e^c).
    """

    def __init__(self, components: int, scale_bound: float):
        self.num_params = 3 * components + 3
        self.components = components
        self.scale_bound = scale_bound

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        blend, a, b = self._unpacked(params)
        v, log_slope = blend.value(x)
        return v * a.exp() + b, log_slope + a

    def inverse(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        blend, a, b = self._unpacked(params)
        v = (y - b) * (-a).exp()
        with torch.no_grad():
            x = blend.root(v)
        if torch.is_grad_enabled():
            # dx = (dv − ∂T)/T′, the implicit function's differential, is that of Newton's step. It is taken without
            # its value, which is rounding. One step makes it exact to first order, the second to third.
            for _ in range(2):
                value, log_slope = blend.value(x)
                step = (v - value) * torch.exp(-log_slope)
                x = x + (step - step.detach())
        _, log_slope = blend.value(x)
        return x, -(log_slope + a)

    def _unpacked(self, params: Tensor) -> tuple[Blend, Tensor, Tensor]:
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
        least, most = 0.5 / math.expm1(self.scale_bound), 1 - MIN_SLOPE  # slopes stay above ½ for w < 0
        return (least + most) * torch.sigmoid(GAIN * w + math.log(least / most)) - least
