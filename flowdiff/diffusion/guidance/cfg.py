"""Classifier-free guidance: away from the model without its condition, D_r = D(x, σ, ∅)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from flowdiff.diffusion.guidance.base import Guidable, Guide, Pair, Start, given
from flowdiff.diffusion.guidance.limits import Interval, Limits, Quantile, Share
from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.flows.guided import GuidanceOrder
from flowdiff.models.networks.base import FlowDensity, Network
from flowdiff.noise import Generators
from flowdiff.registry import Requirement, register

NEEDS_NULL = Requirement(
    "conditioner",
    fits=lambda conditioner, node: bool(node.get("drop")),
    reason="this guidance needs the null condition, and the model is trained without label dropout",
    remedy="set conditioner=class with conditioner.drop > 0, or another guidance",
)


class GuidedStart:
    """A flow that is guided inside its own sampling, as start=flow draws from it (flowdiff/models/flows/guided.py).

    Args:
        network: the flow.
        null: n → the null condition of n samples.
        weight: w of p_c^{1+w}/p_∅^w, ≥ −1; 0 is the conditional flow.
        order: all, the same w for every number, or token, w rising from 0 at the first token to w at the last.

    Raises:
        ConfigurationError: the network is not a flow, or its flow cannot be guided in this order.
    """

    def __init__(self, network: Network, null: Callable[[int], Conditioning], weight: float, order: GuidanceOrder):
        allowed = network.guidance_orders if isinstance(network, FlowDensity) else ()
        if order not in allowed:
            raise ConfigurationError(
                f"guidance.flow_scale={1 + weight:g} guidance.order={order} guides a flow inside its own sampling, and "
                + (
                    f"this flow has no tokens: set guidance.order={' or '.join(allowed)}."
                    if allowed
                    else "this network cannot be guided there: take a flow of affine maps (tarflow, patchwise, maf, "
                    "realnvp, glow, hybrid), or set guidance.flow_scale=1."
                )
            )
        assert isinstance(network, FlowDensity)  # others have no order
        self.network = network
        self.null = null
        self.weight = weight
        self.order = order

    def sample(self, sigma: Tensor, cond: Conditioning | None = None, generator: Generators = None) -> Tensor:
        """Guided samples at the noise levels sigma (B,), (B, …)."""
        if cond is None:
            raise ConfigurationError(
                "guidance.flow_scale was given no condition to guide towards: use a model with conditioner=class, or "
                "guidance=none."
            )
        null = replace(self.null(len(sigma)), hint=cond.hint)  # guidance leads to the class, at the same hint
        return self.network.sample_guided(sigma, cond, null, self.weight, self.order, generator)


@register("guidance", "cfg", requires=[NEEDS_NULL])
class ClassifierFree(Guide):
    """D_∅ + w·(D_c − D_∅), the score of p(x|c)^w·p(x)^(1−w) at each noise level; both D in one batch of 2B.

    With start=flow, `flow_scale` guides the flow inside its own sampling in the same way: every affine map of its
    inverse, N(μ_c, σ_c²) of a number given those before it, becomes p_c^w/p_∅^(w−1) with w = flow_scale:

        σ² = σ_c²/(w − (w − 1)·s),  μ = (w·μ_c − (w − 1)·s·μ_∅)/(w − (w − 1)·s),  s = min(σ_c/σ_∅, 1)²

    In an autoregressive map next to the base this is the guided conditional of each number; in couplings and composed
    maps it is the same mixture without a density that it samples. Only flows of affine maps take it, and D is guided by
    `scale` alone.

    Args:
        denoiser: what is wrapped.
        null: n → the null condition of n samples; None if the model was trained without one.
        starting: the network that start=flow draws from; by default that of what is wrapped.
        starting_null: n → its null condition of n samples; by default `null`.
        scale: w ≥ 0; 1 is the conditional model.
        interval: [low, high] of σ at which to guide; None for every σ.
        rescale: φ ∈ [0, 1], how far D goes back to the standard deviation of D_c.
        dynamic_threshold: quantile ∈ (0, 1] of |D| that becomes 1 where it exceeds 1; None for no threshold.
        flow_scale: w ≥ 0 inside the flow's own sampling; 1 is the conditional flow. STARFlow's strength is w − 1.
        order: of flow_scale: all numbers alike, or token, rising linearly from 1 at the first token to flow_scale at
            the last, for flows of tokens.

    Raises:
        ConfigurationError: there is no null condition, or the flow cannot be guided inside its sampling.

    Source: Ho & Salimans, Classifier-free diffusion guidance, 2022 (their scale is w − 1); flow_scale: Gu et al.,
    STARFlow: Scaling Latent Normalizing Flows for High-resolution Image Synthesis, 2025.
    """

    innermost = True

    def __init__(
        self,
        denoiser: Guidable,
        null: Callable[[int], Conditioning] | None,
        starting: Network | None = None,
        starting_null: Callable[[int], Conditioning] | None = None,
        *,
        scale: NonNegativeFloat,
        interval: Interval,
        rescale: Share,
        dynamic_threshold: Quantile,
        flow_scale: NonNegativeFloat,
        order: GuidanceOrder,
    ):
        super().__init__(denoiser, scale, Limits(interval, rescale, dynamic_threshold))
        if null is None:
            raise ConfigurationError(
                "guidance=cfg needs the null condition, and this model was trained without label dropout: train with "
                "conditioner=class and conditioner.drop > 0, or use another guidance."
            )
        self.null = null
        self.guided_start = None
        if flow_scale != 1:
            self.guided_start = GuidedStart(starting or self.network, starting_null or null, flow_scale - 1, order)

    @property
    def start(self) -> Start | None:
        return self.guided_start

    def pair(self, x: Tensor, sigma: Tensor, cond: Conditioning | None) -> Pair:
        both = Conditioning.cat([given(cond), replace(self.null(len(x)), hint=given(cond).hint)])
        return Pair(*self.denoiser(torch.cat([x, x]), torch.cat([sigma, sigma]), both).chunk(2))
