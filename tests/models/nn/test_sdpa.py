"""Attention: both kernels compute the same function; the one with second derivatives is used if they are needed."""

import pytest
import torch
from small_models import normal
from torch.autograd import forward_ad

from flowdiff.models.nn.sdpa import attention, first_order, layer_norm, may_fuse, third_order


def inputs(T: int = 4, S: int = 4, heads: int = 2, d: int = 3) -> list[torch.Tensor]:
    return normal(*((2, heads, n, d) for n in (T, S, S)), seed=0)


def masks(T: int, S: int) -> dict[str, torch.Tensor | None]:
    padding = torch.ones(2, 1, 1, S, dtype=torch.bool)
    padding[0, ..., -2:] = False
    return {"none": None, "padding": padding, "per query": torch.ones(T, S, dtype=torch.bool).tril(S - T)}


@pytest.mark.parametrize("kind", masks(3, 5))
def test_kernels_agree_and_the_explicit_one_has_second_derivatives(kind):
    q, k, v = inputs(3, 5)
    both = [attention(q, k, v, masks(3, 5)[kind], False, fused) for fused in (True, False)]
    torch.testing.assert_close(*both, rtol=1e-12, atol=1e-12)
    q, k, v = (t.requires_grad_() for t in inputs())
    assert torch.autograd.gradgradcheck(lambda *qkv: attention(*qkv, masks(4, 4)[kind], False, False), (q, k, v))


@pytest.mark.parametrize("fused", [True, False])
def test_causal_is_the_triangular_mask(fused):
    q, k, v = inputs()
    triangle = torch.ones(4, 4, dtype=torch.bool).tril()
    expected = attention(q, k, v, triangle, False, fused)
    torch.testing.assert_close(attention(q, k, v, None, True, fused), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(expected[:, :, 0], v[:, :, 0], rtol=1e-12, atol=1e-12)  # query 0 attends to key 0 only


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")  # raised by torch in make_dual
def test_fused_without_autograd_or_within_first_order_and_never_in_forward_mode():
    x = torch.zeros(2)
    assert may_fuse(x)
    x.requires_grad_()
    assert not may_fuse(x)
    with torch.no_grad():
        assert may_fuse(x)
    with forward_ad.dual_level(), first_order():
        assert not may_fuse(forward_ad.make_dual(torch.zeros(2), torch.ones(2)))
    with first_order():
        assert may_fuse(x)
        with first_order():
            pass
        assert may_fuse(x)
    assert not may_fuse(x)
    with pytest.raises(KeyError), first_order():
        raise KeyError
    assert not may_fuse(x)


def affine() -> list[torch.Tensor]:
    return normal((2, 5), (5,), (5,), seed=3)


def test_both_layer_norms_are_the_same_function():
    h, weight, bias = affine()
    for given in ((), (weight, bias)):
        plain = layer_norm(h, 1e-4, *given)
        with third_order():
            torch.testing.assert_close(layer_norm(h, 1e-4, *given), plain, rtol=1e-12, atol=1e-12)
            half = layer_norm(h.bfloat16(), 1e-4)
        assert half.dtype == torch.float32


def test_the_explicit_layer_norm_has_third_derivatives():
    h, weight, bias = (t.requires_grad_() for t in affine())
    direction = normal((2, 5), (2, 5), seed=4)

    def second(h: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """The second derivative of the sum of squares along two directions, whose gradient is a third one."""
        with third_order():
            total = layer_norm(h, 1e-1, weight, bias).square().sum()
        for v in direction:
            (gradient,) = torch.autograd.grad(total, h, create_graph=True)
            total = (gradient * v).sum()
        return total

    assert torch.autograd.gradcheck(second, (h, weight, bias))


def test_a_trace_within_third_order_stays_there():
    x = torch.zeros(2, requires_grad=True)
    with third_order(), first_order(False):
        assert not may_fuse(x)
        h = torch.randn(2, 3, requires_grad=True)
        assert "NativeLayerNorm" not in str(layer_norm(h, 1e-4).grad_fn)
    assert "NativeLayerNorm" in str(layer_norm(h, 1e-4).grad_fn)
