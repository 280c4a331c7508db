"""The gradient of a score loss with respect to the parameters, from first derivatives only.

With v = ∂loss/∂s held fixed, the chain rule and the symmetry of mixed derivatives give, for s = ∇ₓ log p_θ(x),

    ∇_θ loss = ∇_θ ⟨v, s_θ(x)⟩ = ∇_θ d/dε log p_θ(x + εv) at ε = 0.

The directional derivative is taken as a central difference along u = v/‖v‖ with a step h per sample,

    ∇_θ loss ≈ (‖v‖/2h)·(∇_θ log p_θ(x + hu) − ∇_θ log p_θ(x − hu)),        error O(h²),

or exactly in forward mode. Neither needs the autograd graph of the score, so attention can be fused, and torch.compile
and activation checkpointing work as they do for a likelihood.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

from flowdiff.models.conditioning import Conditioning
from flowdiff.models.nn.sdpa import first_order
from flowdiff.shapes import append_dims

LogProb = Callable[[Tensor, Tensor, Conditioning | None], Tensor]
Gradient = Literal["double_backward", "directional", "forward_mode"]


def directional_score(
    log_prob: LogProb,
    parameters: Sequence[Tensor],
    forward_mode: bool,
    score: Tensor,
    x: Tensor,
    sigma: Tensor,
    cond: Conditioning | None,
) -> Tensor:
    """`score` with a gradient in the parameters and the condition that needs first derivatives only.

    The step of the central difference is h = ε^(1/4)·σ, with ε the machine precision of x's type. In float32 that is
    2 % of σ, where the rounding error and the O(h²) error are about equal.

    Args:
        log_prob: (x, sigma, cond) → log p (B,) in nats.
        parameters: the parameters that log_prob depends on.
        forward_mode: exact forward-mode derivative instead of the central difference.
        score: ∇ₓ log_prob(x, sigma, cond), (B, …), already computed.
        x: (B, …).
        sigma: (B,) > 0.
        cond: the condition of B samples, or None.
    """
    cond = cond or Conditioning()
    return _DirectionalScore.apply(
        log_prob, forward_mode, score, x, sigma, cond.mask, cond.label, cond.vector, cond.tokens, *parameters
    )


class _DirectionalScore(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        log_prob: LogProb,
        forward_mode: bool,
        score: Tensor,
        x: Tensor,
        sigma: Tensor,
        mask: Tensor | None,
        label: Tensor | None,
        vector: Tensor | None,
        tokens: Tensor | None,
        *parameters: Tensor,
    ) -> Tensor:
        ctx.log_prob, ctx.forward_mode = log_prob, forward_mode
        ctx.save_for_backward(x, sigma, mask, label, vector, tokens, *parameters)
        return score.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        x, sigma, mask, label, vector, tokens, *parameters = ctx.saved_tensors
        wanted = [
            needed and tensor is not None
            for needed, tensor in zip(ctx.needs_input_grad[7:], ctx.saved_tensors[4:], strict=True)
        ]
        # Detached leaves: autograd.grad must stop here and not go on into the conditioner.
        vector, tokens = (None if t is None else t.detach().requires_grad_(t.requires_grad) for t in (vector, tokens))
        leaves = [t for t, needed in zip((vector, tokens, *parameters), wanted, strict=True) if needed]
        named = vector is not None or tokens is not None or label is not None
        cond = Conditioning(vector, tokens, mask, label=label) if named else None
        terms = _forward_terms if ctx.forward_mode else _central_terms
        total: list[Tensor | None] = [None] * len(leaves)
        with torch.enable_grad(), first_order():
            for term in terms(ctx.log_prob, x, sigma, cond, v):
                for i, g in enumerate(torch.autograd.grad(term, leaves, allow_unused=True)):
                    if g is not None:
                        before = total[i]
                        total[i] = g if before is None else before + g
        grads = iter(total)
        return (None,) * 7 + tuple(next(grads) if needed else None for needed in wanted)


def _central_terms(
    log_prob: LogProb, x: Tensor, sigma: Tensor, cond: Conditioning | None, v: Tensor
) -> Iterator[Tensor]:
    """Two scalars whose parameter gradients add up to the gradient of the loss; only one graph exists at a time."""
    norm = v.flatten(1).norm(dim=1)
    h = torch.finfo(x.dtype).eps ** 0.25 * sigma
    step = v * append_dims(h / norm.clamp_min(torch.finfo(x.dtype).tiny), v.ndim)
    weight = norm / (2 * h)
    yield (weight * log_prob(x + step, sigma, cond)).sum()
    yield -(weight * log_prob(x - step, sigma, cond)).sum()


def _forward_terms(
    log_prob: LogProb, x: Tensor, sigma: Tensor, cond: Conditioning | None, v: Tensor
) -> Iterator[Tensor]:
    with forward_ad.dual_level(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.script.*")  # raised by torch at the first use of forward mode
        dual = log_prob(forward_ad.make_dual(x, v), sigma, cond)
        tangent = forward_ad.unpack_dual(dual).tangent
    yield tangent.sum()  # outside the dual level, because the backward pass of some operations rejects dual numbers
