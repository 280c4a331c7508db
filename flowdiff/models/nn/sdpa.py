"""Attention softmax(Q Kᵀ/√d) V, by the fastest kernel that supports the derivatives that will be taken.

Fused kernels never store the T×T weights, but they can be differentiated only once, and only backward. The explicit
form can be differentiated any number of times. The choice depends on the input x of the model:

    explicit   if autograd records x, because the score is a first derivative in x and a score loss takes another
    fused      if autograd does not record x (likelihood training, no_grad), or inside `first_order()`

Layer normalisation is here too, because torch's kernel can be differentiated twice, and only the explicit form thrice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

Output = TypeVar("Output")

_highest_order = 2  # of the derivatives that will be taken; a plain global, because torch.compile can guard on it


@contextmanager
def _order(highest: int) -> Iterator[None]:
    global _highest_order
    before, _highest_order = _highest_order, highest
    try:
        yield
    finally:
        _highest_order = before


def first_order(enabled: bool = True) -> AbstractContextManager[None]:
    """Declare that everything computed inside is differentiated in x at most once, and backward (enabled=True)."""
    return _order(1 if enabled else max(2, _highest_order))


def third_order() -> AbstractContextManager[None]:
    """Declare that everything computed inside is differentiated three times: twice in x, then in the parameters."""
    return _order(3)


def keep_kernel_choice(function: Callable[..., Output]) -> Callable[..., Output]:
    """`function`, with the present order at every later call, so that a recomputation is identical."""
    highest = _highest_order

    @wraps(function)
    def call(*inputs: object) -> Output:
        with _order(highest):
            return function(*inputs)

    return call


def may_fuse(x: Tensor) -> bool:
    """Whether attention in a function of x may be fused: no second or forward-mode derivative in x will be taken."""
    if forward_ad.unpack_dual(x).tangent is not None:
        return False
    return _highest_order == 1 or not (x.requires_grad and torch.is_grad_enabled())


def layer_norm(h: Tensor, eps: float, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """(h − mean)/√(var + ε)·weight + bias over the last axis, by torch's kernel or inside `third_order` explicitly.

    The second derivative of torch's kernel takes mean and variance for constants, so its third one is wrong, without an
    error (pytorch/pytorch#175754).
    """
    if _highest_order < 3:
        return F.layer_norm(h, h.shape[-1:], weight, bias, eps)
    h = h.to(torch.promote_types(h.dtype, torch.float32))  # as autocast does before torch's kernel
    centred = h - h.mean(-1, keepdim=True)
    normal = centred * (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    if weight is not None:
        normal = normal * weight
    return normal if bias is None else normal + bias


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
