"""The residual MLP: zero at the start, smooth, and equal to its formula."""

from __future__ import annotations

import pytest
import torch
from flow_cases import SMOOTH, perturb

from flowdiff import registry
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.nn.mlp import ResidualMLP
from flowdiff.models.nn.residual import NetSettings


def make(activation: str = "swish", far: bool = False) -> ResidualMLP:
    torch.manual_seed(0)
    net = ResidualMLP(3, 4, NetSettings(16, 2, 6, registry.create("activation", activation), "film")).double()
    return perturb(net) if far else net


def inputs(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(n, d, generator=generator, dtype=torch.float64) for d in (3, 6))


def test_zero_at_the_start_with_nonzero_gradients():
    net = make()
    x, e = inputs(4)
    y = net(x, Conditioning(e))
    assert y.shape == (4, 4)
    assert torch.equal(y, torch.zeros_like(y))
    y.sum().backward()
    assert net.outer.weight.grad.abs().min() > 0


@pytest.mark.parametrize("activation", SMOOTH)
def test_derivatives(activation):
    net = make(activation, far=True)
    inputs_ = tuple(v.requires_grad_() for v in inputs(2))

    def function(x, e):
        return net(x, Conditioning(e))

    assert torch.autograd.gradcheck(function, inputs_)
    assert torch.autograd.gradgradcheck(function, inputs_)


def test_it_equals_the_formula_of_the_residual_net():
    net = make(far=True)
    x, e = inputs(2)
    act = torch.nn.functional.silu
    h = net.inner(x)
    for block in net.blocks:
        scale, shift = block.film.scale_shift(e).chunk(2, dim=1)
        h = h + block.outer(act(block.inner(act(h)) * (1 + scale) + shift))
    torch.testing.assert_close(net(x, Conditioning(e)), net.outer(act(h)), rtol=1e-12, atol=1e-12)
