"""Embeddings of the noise level, given as the scalar c_noise, and of the condition c.

c_noise is ¼·ln σ in the EDM scaling and in flows (−1.6 … 1.1), and σ itself in other scalings (0.002 … 80 and more).
With

    u = asinh(c_noise) ≈ c_noise near 0,  ≈ ±ln(2|c_noise|) far from 0

both kinds are within about ±6, where one set of frequencies ω resolves them: γ(u) = (u, sin ωu, cos ωu).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowdiff.models.conditioning import Conditioning

# At the lowest ω one period (25) covers the whole range of u; at the highest, a tenth of a decade of σ in ¼·ln σ
# changes the phase by one radian.
LOWEST, HIGHEST = 0.25, 16.0


class NoiseEmbedding(nn.Module):
    """Embedding of the noise level c_noise (B,) of any scaling: (B, dim), C^∞ in c_noise.

    e = W₂ SiLU(W₁ γ(asinh(c_noise))),  with fixed frequencies from 0.25 to 16 in γ

    Source: Tancik et al., Fourier features let networks learn high frequency functions in low dimensional domains,
    2020.
    """

    frequencies: Tensor  # ω

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
    """Embedding of noise level and condition in one vector; the tokens are passed on unchanged.

    e = SiLU(W·SiLU(noise(c_noise) + V·c.vector + U·mean(c.tokens)))

    c_noise (B,), cond with vector (B, cond_dim) and tokens (B, L, token_dim) → Conditioning with vector e and the same
    tokens. The layer W after the sum lets σ and c interact, so a net that reads e needs only a linear map. The mean is
    taken over the tokens that count, and is 0 if none does; through it nets without attention depend on the tokens too.

    Args:
        embed_dim: width of e.
        cond_dim: width of cond.vector, 0 without a vector; then cond may be None.
        token_dim: width of cond.tokens, 0 without tokens.

    Raises:
        ValueError: `forward` gets a condition whose vector or tokens have another width.

    Source: Saharia et al., Photorealistic text-to-image diffusion models with deep language understanding, 2022, for
    the mean of the tokens next to attention over them.
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
        cond = cond or Conditioning()
        vector, tokens = condition_vector(cond, self.cond_dim), condition_tokens(cond, self.token_dim)
        e = self.noise(c_noise)
        if self.condition is not None:
            e = e + self.condition(vector)
        if self.tokens is not None and tokens is not None:
            mask = cond.token_mask()
            total = tokens.masked_fill(~mask[..., None], 0).sum(1)  # (B, token_dim)
            e = e + self.tokens(total / mask.sum(1, keepdim=True).clamp(min=1))
        e = F.silu(self.mix(F.silu(e)))  # (B, embed_dim)
        return cond.with_vector(e)


def unit_linear(in_features: int, out_features: int, bias: bool = True) -> nn.Linear:
    """A linear layer with weights N(0, 1/in_features) and bias 0, so that inputs of order 1 give outputs of order 1.

    torch's default divides the weights by √3 and draws random biases. After the layers of the embedding σ would then
    change e by only 1e-2 around a constant ten times as large, and nets that start at zero would learn to use σ slowly.
    """
    layer = nn.Linear(in_features, out_features, bias)
    nn.init.normal_(layer.weight, std=in_features**-0.5)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def condition_vector(cond: Conditioning | None, cond_dim: int) -> Tensor | None:
    """cond.vector (B, cond_dim), or None if cond_dim = 0; ValueError if the vector has another width."""
    vector = None if cond is None else cond.vector
    given = 0 if vector is None else vector.shape[1]
    if given != cond_dim:
        raise ValueError(
            f"the condition's vector has width {given} (0: no vector), and the model was built for "
            f"cond_dim={cond_dim}: pass the Conditioning of the conditioner that the model was built with."
        )
    return vector


def condition_tokens(cond: Conditioning | None, token_dim: int) -> Tensor | None:
    """cond.tokens (B, L, token_dim), or None without tokens; ValueError if tokens or mask have another shape."""
    if cond is None or cond.tokens is None:
        return None
    tokens, mask = cond.tokens, cond.mask
    if tokens.ndim != 3 or tokens.shape[2] != token_dim:
        raise ValueError(
            f"the condition's tokens have width {tokens.shape[-1]} (shape {tuple(tokens.shape)}), and the model was "
            f"built for tokens (B, L, token_dim) with token_dim={token_dim} (0: no tokens): pass the Conditioning of "
            "the conditioner that the model was built with."
        )
    if mask is not None and (mask.dtype is not torch.bool or mask.shape != tokens.shape[:2]):
        raise ValueError(
            f"the condition's mask is {mask.dtype} of shape {tuple(mask.shape)} and its tokens have shape "
            f"{tuple(tokens.shape)}: give a mask (B, L) of bool, True where a token counts."
        )
    return tokens
