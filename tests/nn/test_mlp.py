"""The residual MLP: off at the start, smooth, and steered by its embedding."""

from __future__ import annotations

import pytest
import torch
from flow_cases import SMOOTH, perturb

from flowdiff import registry
from flowdiff.nn.mlp import FiLM, ResidualMLP


def make(activation: str = "swish", far: bool = False) -> ResidualMLP:
    torch.manual_seed(0)
    net = ResidualMLP(3, 4, 16, 2, 6, registry.build("activation", activation)).double()
    return perturb(net) if far else net


def inputs(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(n, d, generator=generator, dtype=torch.float64) for d in (3, 6))


def test_film_starts_as_the_identity_and_then_scales_and_shifts():
    u, e = torch.randn(2, 5), torch.randn(2, 3)
    film = FiLM(3, 5)
    assert torch.equal(film(u, e), u)
    perturb(film)
    scale, shift = film.scale_shift(e).split(5, dim=1)
    torch.testing.assert_close(film(u, e), u * (1 + scale) + shift)
    assert (film(u, e) - u).abs().min() > 0


def test_zero_at_the_start_and_able_to_leave_it():
    net = make()
    x, e = inputs(4)
    y = net(x, e)
    assert y.shape == (4, 4)
    assert torch.equal(y, torch.zeros_like(y))
    y.sum().backward()
    assert net.outer.weight.grad.abs().min() > 0


@pytest.mark.parametrize("activation", SMOOTH)
def test_derivatives(activation):
    net = make(activation, far=True)
    x, e = (v.requires_grad_() for v in inputs(2))
    assert torch.autograd.gradcheck(net, (x, e))
    assert torch.autograd.gradgradcheck(net, (x, e))


def test_embedding_steers_and_samples_stay_apart():
    net = make(far=True)
    x, e = inputs(2)
    y = net(x, e)
    assert (net(x, e.flip(0)) - y).abs().max() > 0.1
    torch.testing.assert_close(net(x[1:], e[1:]), y[1:], rtol=1e-12, atol=1e-12)
