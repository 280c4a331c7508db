"""How a condition enters a net, chosen by `inject`; (σ, c) reaches the net in each of them.

    film              u ← u·(1 + γ(e)) + β(e)       in every block
    concat            h₀ = W·[x, e]                 once, at the net's input
    cross_attention   h ← h + softmax(Q(h)·K(m)ᵀ/√d)·V(m)   in every block, m = (e, token₁, …, token_L)

e = cond.vector is the embedding of (¼ ln σ, c), the mean of the condition's tokens in it; the tokens are the
condition's own (words, patches), if it has any.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from flowdiff.models.conditioning import Conditioning
from flowdiff.models.nn.attention import attend
from flowdiff.models.nn.embeddings import condition_tokens
from flowdiff.shapes import append_dims

Inject = Literal["film", "concat", "cross_attention"]

HEADS = 4  # of a cross-attention


class FiLM(nn.Module):
    """Feature-wise scale and shift by an embedding, u·(1 + γ(e)) + β(e), γ and β linear and 0 at the start.

    u (B, width, …), e (B, embed_dim) → like u.
    Source: Perez et al., "FiLM: Visual Reasoning with a General Conditioning Layer", 2018.
    """

    def __init__(self, embed_dim: int, width: int):
        super().__init__()
        self.scale_shift = zero_init(nn.Linear(embed_dim, 2 * width))

    def forward(self, u: Tensor, e: Tensor) -> Tensor:
        scale, shift = self.scale_shift(e).chunk(2, dim=1)  # (B, width) each
        return torch.addcmul(append_dims(shift, u.ndim), u, append_dims(1 + scale, u.ndim))


class CrossAttention(nn.Module):
    """h + W·softmax(Q(h)·K(m)ᵀ/√d)·V(m) over the memory m = (0, e, tokens), each position of h a query; W = 0 at first.

    h (B, width, …), cond.vector e (B, embed_dim), cond.tokens (B, L, token_dim) or none → like h. Tokens that
    cond.mask (B, L) excludes get no weight. The memory's zero entry lets a position take nothing, so that with e
    alone the weights are still the net's to choose. Raises ValueError if the tokens' width is not token_dim.
    Source: Vaswani et al., "Attention Is All You Need", 2017.
    """

    def __init__(self, width: int, embed_dim: int, token_dim: int):
        super().__init__()
        self.token_dim = token_dim
        inner = HEADS * -(-width // HEADS)
        self.query = nn.Linear(width, inner)
        self.from_vector = nn.Linear(embed_dim, 2 * inner)
        self.from_tokens = nn.Linear(token_dim, 2 * inner) if token_dim > 0 else None
        self.outer = zero_init(nn.Linear(inner, width))

    def forward(self, h: Tensor, cond: Conditioning) -> Tensor:
        queries = self.query(h.flatten(2).mT if h.ndim > 2 else h[:, None])  # (B, N, inner)
        keys, values, mask = self._memory(cond)
        update = self.outer(attend(queries, keys, values, HEADS, mask))  # (B, N, width)
        return h + update.mT.reshape(h.shape)

    def _memory(self, cond: Conditioning) -> tuple[Tensor, Tensor, Tensor | None]:
        e = self.from_vector(cond.vector)[:, None]  # (B, 1, 2·inner)
        memory = [torch.zeros_like(e), e]
        mask = None
        tokens = condition_tokens(cond, self.token_dim)
        if tokens is not None:
            memory.append(self.from_tokens(tokens))
            if cond.mask is not None:
                always = cond.mask.new_ones(len(e), 2)
                mask = torch.cat([always, cond.mask], dim=1)  # (B, 2 + L)
        keys, values = torch.cat(memory, dim=1).chunk(2, dim=2)
        return keys, values, mask


def zero_init(layer: nn.Module) -> nn.Module:
    """Set weight and bias of a linear or convolutional layer to 0: what it feeds starts switched off."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
