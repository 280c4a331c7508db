"""Attention by the kernel that the derivatives to come allow: softmax(Q Kᵀ/√d) V.

Fused kernels never hold the T×T weights, but they can be differentiated once and backward only. The written-out form
can be differentiated as often as wanted. Which one is due is known where x enters, not where attention happens:

    written out   if autograd follows x, because a score is its first derivative and a score loss takes one more
    fused         if it does not (likelihood training, no_grad), or inside `first_order()`
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

Output = TypeVar("Output")

_promised = False  # a plain global, which torch.compile can guard on; autograd's own modes are per thread as well


@contextmanager
def first_order(promised: bool = True) -> Iterator[None]:
    """Promise that what is computed inside will be differentiated in x once at most, and backward; or do not."""
    global _promised
    before, _promised = _promised, promised
    try:
        yield
    finally:
        _promised = before


def as_promised(function: Callable[..., Output]) -> Callable[..., Output]:
    """`function`, under what is promised now whenever it is called: what is computed twice takes the same kernel."""
    promised = _promised

    @wraps(function)
    def call(*inputs: object) -> Output:
        with first_order(promised):
            return function(*inputs)

    return call


def may_fuse(x: Tensor) -> bool:
    """Whether attention in a function of x may be fused: no second and no forward derivative in x can be asked for."""
    if forward_ad.unpack_dual(x).tangent is not None:
        return False
    return _promised or not (x.requires_grad and torch.is_grad_enabled())


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, fused: bool) -> Tensor:
    """softmax(q kᵀ/√d) v for q (B, heads, T, d), k and v (B, heads, S, d) → (B, heads, T, d).

    mask: True where a query may look, broadcast to (B, heads, T, S), at least one True per row; causal (T = S, without
    a mask): query i sees the keys 0 … i. fused: see the module.
    """
    if fused:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    if causal:
        mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
    logits = (q * q.shape[-1] ** -0.5) @ k.mT  # (B, heads, T, S)
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf"))
    return _softmax(logits) @ v


def _softmax(logits: Tensor) -> Tensor:
    """e^l / Σ e^l over the last axis; torch's own cannot be differentiated forward and then backward."""
    if forward_ad.unpack_dual(logits).tangent is None:
        return torch.softmax(logits, dim=-1)
    weights = torch.exp(logits - logits.detach().amax(-1, keepdim=True))
    return weights / weights.sum(-1, keepdim=True)
