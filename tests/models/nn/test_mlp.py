"""The residual MLP: smooth, and equal to its formula."""

import pytest
import torch
from flow_cases import SMOOTH, perturb
from small_models import normal

from flowdiff import registry
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.nn.mlp import ResidualMLP
from flowdiff.models.nn.residual import NetSettings


def make(activation: str = "swish") -> ResidualMLP:
    torch.manual_seed(0)
    return perturb(ResidualMLP(3, 4, NetSettings(16, 2, 6, registry.create("activation", activation), "film")).double())


@pytest.mark.parametrize("activation", SMOOTH)
def test_derivatives(activation):
    net = make(activation)
    inputs_ = tuple(v.requires_grad_() for v in normal((2, 3), (2, 6)))

    def function(x, e):
        return net(x, Conditioning(e))

    assert torch.autograd.gradcheck(function, inputs_)
    assert torch.autograd.gradgradcheck(function, inputs_)


def test_it_equals_the_formula_of_the_residual_net():
    net, (x, e) = make(), normal((2, 3), (2, 6))
    act = torch.nn.functional.silu
    h = net.inner(x)
    for block in net.blocks:
        scale, shift = block.film.scale_shift(e).chunk(2, dim=1)
        h = h + block.outer(act(block.inner(act(h)) * (1 + scale) + shift))
    torch.testing.assert_close(net(x, Conditioning(e)), net.outer(act(h)), rtol=1e-12, atol=1e-12)
