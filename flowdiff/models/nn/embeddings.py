"""Embeddings of what a model is conditioned on: the noise level as the scalar c_noise, and the condition c.

c_noise is ¼·ln σ in the EDM scaling and the flows (−1.6 … 1.1), σ itself in the others (0.002 … 80 and more).
With

    u = asinh(c_noise) ≈ c_noise near 0,  ≈ ±ln(2|c_noise|) far from it

both kinds land within about ±6, where one set of frequencies ω resolves them: γ(u) = (u, sin ωu, cos ωu).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowdiff.models.conditioning import Conditioning

# ω from where one period (25) covers all of u's range to where one radian is a tenth of a decade of σ in ¼·ln σ.
LOWEST, HIGHEST = 0.25, 16.0


class NoiseEmbedding(nn.Module):
    """Smooth embedding of the noise level, e = W₂ SiLU(W₁ γ(asinh(c_noise))).

    c_noise (B,) of any scaling → (B, dim). C^∞ in c_noise: the frequencies are fixed, from 0.25 to 16.
    Source: Tancik et al., "Fourier Features Let Networks Learn High Frequency Functions in Low Dimensional
    Domains", 2020.
    """

    def __init__(self, dim: int):
        super().__init__()
        frequencies = torch.logspace(0, 1, max(dim // 2, 2), base=HIGHEST / LOWEST) * LOWEST
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.inner = unit_linear(1 + 2 * len(frequencies), dim)
        self.outer = unit_linear(dim, dim)

    def forward(self, c_noise: Tensor) -> Tensor:
        u = torch.asinh(c_noise)[:, None]  # (B, 1)
        phase = u * self.frequencies  # (B, dim/2)
        features = torch.cat([u, phase.sin(), phase.cos()], dim=1)
        return self.outer(F.silu(self.inner(features)))  # (B, dim)


class ConditionEmbedding(nn.Module):
    """Noise level and condition in one vector, e = SiLU(W·SiLU(noise(c_noise) + V·c.vector + U·mean(c.tokens))).

    c_noise (B,), cond with vector (B, cond_dim) and tokens (B, L, token_dim) → Conditioning with vector (B, embed_dim),
    tokens and mask as they were. The layer W after the sum lets σ and c interact, so its readers need no more than a
    linear map. The mean is that of the tokens that count, 0 if none does: what reads no tokens hears of them by it.
    Where cond_dim or token_dim is 0, cond has no such part; it may be None without a vector. Raises ValueError if cond
    does not fit.
    Source of the mean beside an attention over all tokens: Saharia et al., "Photorealistic Text-to-Image Diffusion
    Models with Deep Language Understanding", 2022.
    """

    def __init__(self, embed_dim: int, cond_dim: int, token_dim: int = 0):
        super().__init__()
        self.cond_dim = cond_dim
        self.token_dim = token_dim
        self.noise = NoiseEmbedding(embed_dim)
        self.condition = unit_linear(cond_dim, embed_dim, bias=False) if cond_dim > 0 else None
        self.mix = unit_linear(embed_dim, embed_dim)
        self.tokens = unit_linear(token_dim, embed_dim, bias=False) if token_dim > 0 else None

    def forward(self, c_noise: Tensor, cond: Conditioning | None = None) -> Conditioning:
        vector, tokens = condition_vector(cond, self.cond_dim), condition_tokens(cond, self.token_dim)
        e = self.noise(c_noise)
        if vector is not None:
            e = e + self.condition(vector)
        if tokens is not None:
            counts = cond.counts()
            total = tokens.masked_fill(~counts[..., None], 0).sum(1)  # (B, token_dim)
            e = e + self.tokens(total / counts.sum(1, keepdim=True).clamp(min=1))
        e = F.silu(self.mix(F.silu(e)))  # (B, embed_dim)
        return Conditioning(e) if cond is None else cond.with_vector(e)


def unit_linear(in_features: int, out_features: int, bias: bool = True) -> nn.Linear:
    """A linear layer with weights N(0, 1/in_features) and no offset: inputs of order one give outputs of order one.

    torch's own start divides the weights by √3 and adds random offsets, which over the embedding's layers leave σ a
    trace of 1e-2 on a constant ten times as large, and its readers, zero at the start, slow to pick it up.
    """
    layer = nn.Linear(in_features, out_features, bias)
    nn.init.normal_(layer.weight, std=in_features**-0.5)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def condition_vector(cond: Conditioning | None, cond_dim: int) -> Tensor | None:
    """cond.vector (B, cond_dim), or None where cond_dim = 0; ValueError if model and condition do not fit."""
    vector = None if cond is None else cond.vector
    given = 0 if vector is None else vector.shape[1]
    if given != cond_dim:
        raise ValueError(
            f"the condition's vector has width {given} (0 is none) but the model was built for "
            f"cond_dim={cond_dim}: pass the Conditioning of the conditioner that the model was built with."
        )
    return vector


def condition_tokens(cond: Conditioning | None, token_dim: int) -> Tensor | None:
    """cond.tokens (B, L, token_dim) or None if there are none; ValueError if they, or their mask, do not fit."""
    tokens = None if cond is None else cond.tokens
    if tokens is None:
        return None
    if tokens.ndim != 3 or tokens.shape[2] != token_dim:
        raise ValueError(
            f"the condition's tokens of shape {tuple(tokens.shape)} and width {tokens.shape[-1]} do not fit the model, "
            f"which was built for (B, L, token_dim) with token_dim={token_dim} (0 is none): pass the Conditioning of "
            "the conditioner that the model was built with."
        )
    mask = cond.mask
    if mask is not None and (mask.dtype is not torch.bool or mask.shape != tokens.shape[:2]):
        raise ValueError(
            f"the condition's mask is {mask.dtype} of shape {tuple(mask.shape)} and its tokens have shape "
            f"{tuple(tokens.shape)}: give a mask (B, L) of bool, True where a token counts."
        )
    return tokens
