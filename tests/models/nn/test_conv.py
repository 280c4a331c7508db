"""The convolutional residual net: zero at the start; it depends on the documented range of pixels."""

import pytest
import torch
from flow_cases import perturb
from small_models import normal

from flowdiff import registry
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.nn.conv import ResidualConv
from flowdiff.models.nn.residual import NetSettings


@pytest.mark.parametrize(("depth", "heads", "reach"), [(1, 0, 3), (2, 0, 4), (1, 2, 9)])
def test_the_range_of_input_pixels(depth, heads, reach):
    """At the start the output is 0; then its middle pixel depends on exactly those within the documented distance."""
    torch.manual_seed(0)
    settings = NetSettings(8, depth, 4, registry.create("activation", "swish"), "film")
    net = ResidualConv(2, 3, settings, grid=(9, 9), attention_heads=heads).double()
    x, e = normal((2, 2, 9, 9), (2, 4))
    y = net(x.requires_grad_(), Conditioning(e))
    assert torch.equal(y, x.new_zeros(2, 3, 9, 9))
    y.sum().backward()
    assert net.outer.weight.grad.abs().min() > 0
    (slope,) = torch.autograd.grad(perturb(net)(x, Conditioning(e))[0, :, 4, 4].sum(), x)
    assert not slope[1].any()  # the other sample
    rows, columns = (torch.arange(9) - 4).abs()[:, None], (torch.arange(9) - 4).abs()
    assert torch.equal(slope[0].abs().amax(0) > 0, torch.maximum(rows, columns) <= reach)
