"""The convolutional residual net: zero at the start; it depends on the documented range of pixels."""

from __future__ import annotations

import pytest
import torch
from flow_cases import perturb

from flowdiff import registry
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.nn.conv import ResidualConv
from flowdiff.models.nn.residual import NetSettings


def make(depth: int, far: bool = True, heads: int = 0) -> ResidualConv:
    torch.manual_seed(0)
    act = registry.create("activation", "swish")
    settings = NetSettings(8, depth, 4, act, "film")
    net = ResidualConv(2, 3, settings, attention_heads=heads, positions=81).double()
    return perturb(net) if far else net


def inputs() -> tuple[torch.Tensor, Conditioning]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 2, 9, 9, generator=generator, dtype=torch.float64)
    return x, Conditioning(torch.randn(2, 4, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("heads", [0, 2])
def test_zero_at_the_start_with_nonzero_gradients(heads):
    net = make(1, far=False, heads=heads)
    y = net(*inputs())
    assert y.shape == (2, 3, 9, 9)
    assert torch.equal(y, torch.zeros_like(y))
    y.sum().backward()
    assert net.outer.weight.grad.abs().min() > 0


@pytest.mark.parametrize(("depth", "heads", "reach"), [(1, 0, 3), (2, 0, 4), (1, 2, 9)])
def test_the_range_of_input_pixels(depth, heads, reach):
    """The middle output pixel depends on exactly the input pixels within the documented distance."""
    net, (x, cond) = make(depth, heads=heads), inputs()
    x.requires_grad_()
    (slope,) = torch.autograd.grad(net(x, cond)[0, :, 4, 4].sum(), x)
    assert not slope[1].any()  # the other sample
    rows, columns = (torch.arange(9) - 4).abs()[:, None], (torch.arange(9) - 4).abs()
    assert torch.equal(slope[0].abs().amax(0) > 0, torch.maximum(rows, columns) <= reach)
