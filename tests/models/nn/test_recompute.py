"""Activation checkpointing recomputes the same values with the same kernels, and refuses forward mode."""

import pytest
import torch
from torch.autograd import forward_ad

from flowdiff.errors import ConfigurationError
from flowdiff.models.nn import sdpa
from flowdiff.models.nn.recompute import call


@pytest.mark.parametrize("first_order", [False, True])
def test_attention_is_recomputed_by_the_same_kernel(first_order):
    """The backward pass may run under another `first_order` setting than the forward pass."""
    fused = []

    def attend(q: torch.Tensor) -> torch.Tensor:
        fused.append(sdpa.may_fuse(q))
        return sdpa.attention(q, q, q, None, False, fused[-1])

    q = torch.randn(2, 1, 3, 4, requires_grad=True)
    with sdpa.first_order(first_order):
        out = call(attend, q, checkpoint=True)
    with sdpa.first_order(not first_order):
        (again,) = torch.autograd.grad(out.square().sum(), q)
    assert fused == [first_order, first_order]
    (once,) = torch.autograd.grad(sdpa.attention(q, q, q, None, False, first_order).square().sum(), q)
    assert torch.equal(again, once)


def test_nothing_is_recomputed_without_autograd_or_without_the_flag():
    calls = []

    def sine(x: torch.Tensor) -> torch.Tensor:
        calls.append(x)
        return x.sin().sin()

    x = torch.randn(3, requires_grad=True)
    with torch.no_grad():
        call(sine, x, checkpoint=True)
    call(sine, x, checkpoint=False).sum().backward()
    assert len(calls) == 2
    call(sine, x, checkpoint=True).sum().backward()
    assert len(calls) == 4


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")
def test_forward_mode_is_refused():
    with forward_ad.dual_level(), pytest.raises(ConfigurationError, match=r"loss\.gradient=directional"):
        call(torch.sin, forward_ad.make_dual(torch.ones(2), torch.ones(2)), checkpoint=True)
