"""Networks without a density: zero at the start, dependent on noise level and condition, of a known size."""

import pytest
import torch
from flow_cases import perturb

from flowdiff import registry
from flowdiff.models.conditioning import Conditioning

SMALL = {"mlp": {"width": 32}, "unet": {"channels": [8, 8], "attention": [False, True], "norm_groups": 4}}
CASES = [
    *(("mlp", shape) for shape in [(2,), (1, 8, 8)]),
    *(("unet", shape) for shape in [(1, 8, 8), (3, 8, 12), (1, 28, 28)]),
]


def make(name, shape, cond_dim=0, **settings):
    torch.manual_seed(0)
    activation = registry.create("activation", "swish")
    return registry.create("network", name, shape=shape, cond_dim=cond_dim, activation=activation, **settings)


@pytest.mark.parametrize(("name", "shape"), CASES, ids=str)
@pytest.mark.parametrize("cond_dim", [0, 5])
@torch.no_grad()
def test_zero_at_the_start_then_depends_on_noise_level_and_condition(name, shape, cond_dim):
    net = make(name, shape, cond_dim, **SMALL[name]).eval()
    torch.manual_seed(1)
    x, c_noise = torch.randn(2, *shape), torch.tensor([-1.5, 1.0])
    c, other = (Conditioning(torch.randn(2, cond_dim)) if cond_dim else None for _ in range(2))
    F = net(x, c_noise, c)
    assert F.shape == x.shape
    assert torch.equal(F, torch.zeros_like(x))
    perturb(net)
    F = net(x, c_noise, c)
    assert (net(x, c_noise.flip(0), c) - F).abs().max() > 0.01
    if cond_dim:
        assert (net(x, c_noise, other) - F).abs().max() > 0.01


@pytest.mark.parametrize(("name", "low", "high"), [("mlp", 1.0e6, 1.3e6), ("unet", 0.25e6, 0.35e6)])
def test_default_size(name, low, high):
    """On 8×8 digits with ten classes."""
    assert low < sum(p.numel() for p in make(name, (1, 8, 8), 64).parameters()) < high


@pytest.mark.parametrize("shape", [(2,), (1, 8, 8)], ids=str)
def test_an_mlp_learns_a_function_of_x_sigma_and_class(shape):
    """A few steps of Adam fit F = x·c_noise·(sign of the class), which no additive model can fit."""
    net = make("mlp", shape, 2, width=64, depth=2)
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
