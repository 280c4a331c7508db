"""Attention for coupling nets: among the pixels of an image, and by heads over any memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flowdiff.models.nn import sdpa


def attend(queries: Tensor, keys: Tensor, values: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """softmax(Q·Kᵀ/√d)·V by heads: queries (B, N, inner), keys and values (B, L, inner) → (B, N, inner).

    mask (B, L) is True where a key counts; at least one must. `heads` divides inner. What a coupling's net reads has
    been through other nets, so autograd follows it in likelihood training too: fused where nothing is recorded or no
    second derivative follows.
    """
    q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (queries, keys, values))  # (B, heads, ·, d)
    mask = None if mask is None else mask[:, None, None]
    out = sdpa.attention(q, k, v, mask, causal=False, fused=sdpa.may_fuse(q))
    return out.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """h + W·softmax(Q(u)·K(u)ᵀ/√d)·V(u) among the pixels of h, u = h + position; C^∞.

    h (B, width, H, W) with H·W = positions → like h; `heads` divides width. The position is learned, N(0, 0.02²) at
    the start.
    Source: Vaswani et al., "Attention Is All You Need", 2017.
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
