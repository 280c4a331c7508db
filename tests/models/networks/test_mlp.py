"""The MLP network: zero at the start, for any shape, and dependent on noise level and condition."""

from __future__ import annotations

import pytest
import torch
from flow_cases import perturb

from flowdiff import registry
from flowdiff.models.conditioning import Conditioning

SHAPES = pytest.mark.parametrize("shape", [(2,), (1, 8, 8)], ids=str)
COND_DIMS = pytest.mark.parametrize("cond_dim", [0, 5])


def make(shape, cond_dim=0, **settings):
    torch.manual_seed(0)
    activation = registry.create("activation", "swish")
    return registry.create("network", "mlp", shape=shape, cond_dim=cond_dim, activation=activation, **settings)


def cond(n: int, cond_dim: int) -> Conditioning | None:
    return Conditioning(torch.randn(n, cond_dim)) if cond_dim else None


@SHAPES
@COND_DIMS
def test_zero_at_the_start_then_depends_on_noise_level_and_condition(shape, cond_dim):
    net = make(shape, cond_dim, width=32)
    torch.manual_seed(1)
    x, c = torch.randn(3, *shape), cond(3, cond_dim)
    low, high = torch.full((3,), -1.5), torch.full((3,), 1.0)
    F = net(x, low, c)
    assert F.shape == x.shape
    assert torch.equal(F, torch.zeros_like(x))
    perturb(net)
    F = net(x, low, c)
    assert (net(x, high, c) - F).abs().max() > 0.01
    if cond_dim:
        assert (net(x, low, cond(3, cond_dim)) - F).abs().max() > 0.01


@SHAPES
def test_learns_a_function_of_x_sigma_and_class(shape):
    """A few steps of Adam fit F = x·c_noise·(sign of the class), which no additive model can fit."""
    net = make(shape, 2, width=64, depth=2)
    torch.manual_seed(2)
    x, c_noise = torch.randn(64, *shape), torch.empty(64).uniform_(-1.5, 1.1)
    sign = torch.randint(0, 2, (64,)) * 2.0 - 1
    c = Conditioning(torch.stack([sign, -sign], 1))
    target = x * (c_noise * sign).reshape(-1, *[1] * len(shape))
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        loss = (net(x, c_noise, c) - target).square().mean()
        loss.backward()
        optimizer.step()
    assert loss < 0.1 * target.square().mean()


def test_default_size():
    """On 8×8 digits with ten classes the default has about 1.2 M parameters."""
    parameters = sum(p.numel() for p in make((1, 8, 8), 64).parameters())
    assert 1.0e6 < parameters < 1.3e6
