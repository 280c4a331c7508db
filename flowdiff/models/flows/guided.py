"""Guidance inside a flow's own sampling: every affine map of the inverse is a mixture of two, with and without c.

An affine map of the inverse, x = μ + σ·z for one number, samples p_c = N(μ_c, σ_c²) for z ~ N(0, 1). Guidance samples

    p_c^{1+w}/p_∅^w   up to a constant,   which is N(μ, σ²) with
    σ² = σ_c²/(1 + w − w·s),   μ = ((1 + w)·μ_c − w·s·μ_∅)/(1 + w − w·s),   s = σ_c²/σ_∅²,

where ∅ is the null condition. For σ_c > σ_∅ the product grows without bound and is no density as soon as w·s ≥ 1 + w;
STARFlow takes s = min(σ_c/σ_∅, 1)², which keeps σ ≤ σ_c. Then 1 + w − w·s ≥ 1 for w ≥ 0, and the forms

    μ = μ_c + w·s/(1 + w·(1 − s))·(μ_c − μ_∅),   ln σ = ln σ_c − ½·ln(1 + w·(1 − s))

give exactly μ_c and σ_c for w = 0, and for two equal maps at every w.

What it samples. In a single autoregressive map next to the base, each number given those before it has the density
above: the product of the conditionals, each normalised given its own past, which is not the normalised product of the
joint densities. In couplings, and in every map that is not next to the base, z is not N(0, 1) given the past, so that
the mixture is the same formula without that meaning. The samples are those of no flow with these parameters and their
density is not known: log_prob stays that of the unguided flow. A large w gives samples far from all data.

Both maps are computed from the same past: the guided one. The batch holds every sample twice, first all with their
condition and then all with the null condition; after every affine map the two halves are equal again, and maps that do
not depend on the condition keep them equal.

Source: Gu et al., STARFlow: Scaling Latent Normalizing Flows for High-resolution Image Synthesis, 2025.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from flowdiff.models.conditioning import Conditioning
from flowdiff.shapes import append_dims

GuidanceOrder = Literal["all", "token"]
"""Where guidance has its full weight: in all numbers, or rising linearly from 0 at the first token to the last."""


def guided_affine(
    mean: Tensor, log_scale: Tensor, null_mean: Tensor, null_log_scale: Tensor, weight: Tensor | float
) -> tuple[Tensor, Tensor]:
    """μ and ln σ of the guided map, from those of the maps with and without the condition and w ≥ −1, all alike."""
    s = torch.exp(2 * (log_scale - null_log_scale).clamp(max=0))
    spread = 1 + weight * (1 - s)
    return mean + weight * s / spread * (mean - null_mean), log_scale - 0.5 * spread.log()


def guided_inverse(mean: Tensor, log_scale: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """μ and ln σ of the guided x = μ + σ·z, in both halves, from those of a batch of pairs (2B, …) and w (2B,)."""
    (mean_c, mean_u), (scale_c, scale_u) = mean.chunk(2), log_scale.chunk(2)
    mean, log_scale = guided_affine(mean_c, scale_c, mean_u, scale_u, append_dims(weight[: len(mean_c)], mean.ndim))
    return torch.cat([mean, mean]), torch.cat([log_scale, log_scale])


def guided_forward(log_scale: Tensor, shift: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """s and t of the guided map, written data → base as z = x·e^s + t, from those of a batch of pairs, like above."""
    mean, log_scale = guided_inverse(-shift * torch.exp(-log_scale), -log_scale, weight)
    return -log_scale, -mean * torch.exp(-log_scale)


def weight_at(guidance: Tensor, token: int, count: int) -> Tensor:
    """w (B,) at one of `count` tokens, for the weights at the first and the last one, guidance (B, 2)."""
    return torch.lerp(guidance[:, 0], guidance[:, 1], token / max(1, count - 1))


def at_token(cond: Conditioning, token: int, count: int) -> Conditioning:
    """The condition of a flow of one of `count` tokens."""
    if cond.guidance is None:
        return cond
    weight = weight_at(cond.guidance, token, count)
    return replace(cond, guidance=torch.stack([weight, weight], 1))
