"""Attention: both kernels compute the same function; the one with second derivatives is used if they are needed."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad

from flowdiff.models.nn.sdpa import attention, first_order, may_fuse


def inputs(T: int = 4, S: int = 4, heads: int = 2, d: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, heads, n, d, generator=generator, dtype=torch.float64) for n in (T, S, S)]


def masks(T: int, S: int) -> dict[str, torch.Tensor | None]:
    padding = torch.ones(2, 1, 1, S, dtype=torch.bool)
    padding[0, ..., -2:] = False
    return {"none": None, "padding": padding, "per query": torch.ones(T, S, dtype=torch.bool).tril(S - T)}


@pytest.mark.parametrize("kind", masks(3, 5))
def test_kernels_agree(kind):
    q, k, v = inputs(3, 5)
    both = [attention(q, k, v, masks(3, 5)[kind], False, fused) for fused in (True, False)]
    torch.testing.assert_close(*both, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("fused", [True, False])
def test_causal_is_the_triangular_mask(fused):
    q, k, v = inputs()
    triangle = torch.ones(4, 4, dtype=torch.bool).tril()
    expected = attention(q, k, v, triangle, False, fused)
    torch.testing.assert_close(attention(q, k, v, None, True, fused), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(expected[:, :, 0], v[:, :, 0], rtol=1e-12, atol=1e-12)  # query 0 attends to key 0 only


@pytest.mark.parametrize("kind", masks(4, 4))
def test_the_explicit_form_has_second_derivatives(kind):
    q, k, v = (t.requires_grad_() for t in inputs())
    assert torch.autograd.gradgradcheck(lambda *qkv: attention(*qkv, masks(4, 4)[kind], False, False), (q, k, v))


def test_fused_if_autograd_does_not_record_x():
    x = torch.zeros(2)
    assert may_fuse(x)
    x.requires_grad_()
    assert not may_fuse(x)
    with torch.no_grad():
        assert may_fuse(x)


def test_first_order_allows_fusing_until_its_block_ends():
    x = torch.zeros(2, requires_grad=True)
    with first_order():
        assert may_fuse(x)
        with first_order():
            pass
        assert may_fuse(x)
    assert not may_fuse(x)
    with pytest.raises(KeyError), first_order():
        raise KeyError
    assert not may_fuse(x)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")  # raised by torch in make_dual
def test_forward_derivatives_are_never_fused():
    with forward_ad.dual_level():
        x = forward_ad.make_dual(torch.zeros(2), torch.ones(2))
        with first_order():
            assert not may_fuse(x)
