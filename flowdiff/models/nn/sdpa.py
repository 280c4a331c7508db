"""Attention softmax(Q Kᵀ/√d) V, by the fastest kernel that supports the derivatives that will be taken.

Fused kernels never store the T×T weights, but they can be differentiated only once, and only backward. The explicit
form can be differentiated any number of times. The choice depends on the input x of the model:

    explicit   if autograd records x, because the score is a first derivative in x and a score loss takes another
    fused      if autograd does not record x (likelihood training, no_grad), or inside `first_order()`
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

_only_first_order = False  # a plain global, because torch.compile can guard on it


@contextmanager
def first_order(enabled: bool = True) -> Iterator[None]:
    """Declare that everything computed inside is differentiated in x at most once, and backward (enabled=True)."""
    global _only_first_order
    before, _only_first_order = _only_first_order, enabled
    try:
        yield
    finally:
        _only_first_order = before


def keep_kernel_choice(function: Callable[..., Output]) -> Callable[..., Output]:
    """`function`, with the present `first_order` setting at every later call, so that a recomputation is identical."""
    enabled = _only_first_order

    @wraps(function)
    def call(*inputs: object) -> Output:
        with first_order(enabled):
            return function(*inputs)

    return call


def may_fuse(x: Tensor) -> bool:
    """Whether attention in a function of x may be fused: no second or forward-mode derivative in x will be taken."""
    if forward_ad.unpack_dual(x).tangent is not None:
        return False
    return _only_first_order or not (x.requires_grad and torch.is_grad_enabled())


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, fused: bool) -> Tensor:
    """softmax(q kᵀ/√d) v, (B, heads, T, d).

    Args:
        q: queries (B, heads, T, d).
        k: keys (B, heads, S, d).
        v: values (B, heads, S, d).
        mask: bool, broadcast to (B, heads, T, S), True where a query may attend to a key, at least once per row.
        causal: query i attends to the keys 0 … i; needs T = S and no mask.
        fused: use the fused kernel, which can be differentiated once, and only backward.
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
    """e^l / Σ e^l over the last axis; torch.softmax cannot be differentiated in forward mode and then backward."""
    if forward_ad.unpack_dual(logits).tangent is None:
        return torch.softmax(logits, dim=-1)
    weights = torch.exp(logits - logits.detach().amax(-1, keepdim=True))
    return weights / weights.sum(-1, keepdim=True)
