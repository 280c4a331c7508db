"""Multi-head attention for the nets of flows: over given keys and values, and between the pixels of an image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flowdiff.models.nn import sdpa


def attend(queries: Tensor, keys: Tensor, values: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Multi-head attention softmax(Q·Kᵀ/√d)·V, (B, N, inner).

    The queries depend on x through earlier layers, so autograd records them even in likelihood training. The fused
    kernel is used if autograd records nothing, or if no second derivative follows (flowdiff/models/nn/sdpa.py).

    Args:
        queries: (B, N, inner).
        keys: (B, L, inner).
        values: (B, L, inner).
        heads: number of heads, a divisor of inner.
        mask: (B, L) bool, True where a key counts, at least once per row; None if all keys count.
    """
    q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (queries, keys, values))  # (B, heads, ·, d)
    mask = None if mask is None else mask[:, None, None]
    out = sdpa.attention(q, k, v, mask, causal=False, fused=sdpa.may_fuse(q))
    return out.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Self-attention between the pixels of h (B, width, H, W), with a residual connection; C^∞.

    h ← h + W·softmax(Q(u)·K(u)ᵀ/√d)·V(u),  u = h + position

    Args:
        width: channels of h.
        positions: number of pixels H·W; each has a learned position, N(0, 0.02²) at the start.
        heads: number of heads, a divisor of width.

    Source: Vaswani et al., Attention is all you need, 2017.
    """

    def __init__(self, width: int, positions: int, heads: int):
        super().__init__()
        self.heads = heads
        self.position = nn.Parameter(0.02 * torch.randn(positions, width))
        self.inner = nn.Linear(width, 3 * width)
        self.outer = nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        u = h.flatten(2).mT + self.position  # (B, H·W, width)
        q, k, v = self.inner(u).chunk(3, dim=2)
        return h + self.outer(attend(q, k, v, self.heads)).mT.reshape(h.shape)
