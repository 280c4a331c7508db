"""The ways in which a condition enters a net, chosen by `inject`; with each of them the net depends on (σ, c).

    film              u ← u·(1 + γ(e)) + β(e)       in every block
    concat            h₀ = W·[x, e]                 once, at the input of the net
    cross_attention   h ← h + softmax(Q(h)·K(m)ᵀ/√d)·V(m)   in every block, m = (e, token₁, …, token_L)

e = cond.vector is the embedding of (¼ ln σ, c), which contains the mean of the condition's tokens. The tokens are those
of the condition (words, patches), if it has any.
"""

from __future__ import annotations

from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from flowdiff.models.conditioning import Conditioning
from flowdiff.models.nn.attention import attend
from flowdiff.models.nn.embeddings import condition_tokens
from flowdiff.shapes import append_dims

Inject = Literal["film", "concat", "cross_attention"]
Layer = TypeVar("Layer", bound=nn.Module)

HEADS = 4  # heads of a cross-attention


class FiLM(nn.Module):
    """Scale and shift of each feature of u (B, width, …) by an embedding e (B, embed_dim); the identity at the start.

    u ← u·(1 + γ(e)) + β(e),  γ and β linear

    Source: Perez et al., FiLM: visual reasoning with a general conditioning layer, 2018.
    """

    def __init__(self, embed_dim: int, width: int):
        super().__init__()
        self.scale_shift = zero_init(nn.Linear(embed_dim, 2 * width))

    def forward(self, u: Tensor, e: Tensor) -> Tensor:
        scale, shift = self.scale_shift(e).chunk(2, dim=1)  # (B, width) each
        return torch.addcmul(append_dims(shift, u.ndim), u, append_dims(1 + scale, u.ndim))


class CrossAttention(nn.Module):
    """Attention of every position of h (B, width, …) over the condition; the identity at the start.

    h ← h + W·softmax(Q(h)·K(m)ᵀ/√d)·V(m),  m = (0, e, token₁, …, token_L),  W = 0 at the start

    Tokens that do not count get no weight. The entry 0 of m lets a position read nothing, so that the attention weights
    matter even if e is the only other entry.

    Args:
        width: number of features of h.
        embed_dim: width of e = cond.vector (B, embed_dim).
        token_dim: width of cond.tokens (B, L, token_dim), 0 without tokens.

    Raises:
        ValueError: `forward` gets tokens of another width.

    Source: Vaswani et al., Attention is all you need, 2017.
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
        if self.from_tokens is not None and tokens is not None:
            memory.append(self.from_tokens(tokens))
            if cond.mask is not None:
                always = cond.mask.new_ones(len(e), 2)
                mask = torch.cat([always, cond.mask], dim=1)  # (B, 2 + L)
        keys, values = torch.cat(memory, dim=1).chunk(2, dim=2)
        return keys, values, mask


def zero_init(layer: Layer) -> Layer:
    """Set the parameters of a layer to 0, so that its output is 0 at the start; returns the layer."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
