"""What is RealNVP's own: which dimensions its couplings move, how they are bounded, where its splits come from."""

from __future__ import annotations

import math

import pytest
import torch
from flow_cases import perturb

from flowdiff import registry
from flowdiff.conditioning import Conditioning
from flowdiff.errors import ConfigurationError

EMBED = 4


def make(dim: int, seed: int = 0, **settings):
    torch.manual_seed(seed)
    runtime = {"shape": (dim,), "embed_dim": EMBED, "activation": registry.build("activation", "swish")}
    return registry.build("flow", "realnvp", **runtime, **{"hidden": 16, **settings}).double()


def inputs(n: int, dim: int) -> tuple[torch.Tensor, Conditioning]:
    generator = torch.Generator().manual_seed(1)
    x, e = (torch.randn((n, d), generator=generator, dtype=torch.float64) for d in (dim, EMBED))
    return x, Conditioning(e)


@pytest.mark.parametrize("dim", [2, 7, 64])
@pytest.mark.parametrize("seed", range(3))
def test_one_coupling_moves_half_and_two_move_all(dim, seed):
    x, cond = inputs(8, dim)
    moved = (perturb(make(dim, seed, n_flows=1))(x, cond)[0] - x).abs().amax(0) > 1e-6
    assert int(moved.sum()) == dim - dim // 2
    moved = (perturb(make(dim, seed, n_flows=2))(x, cond)[0] - x).abs().amax(0) > 1e-6
    assert moved.all()


def test_log_scales_are_bounded_without_clamping():
    """However large a net's output a, |s| < bound, with a slope where a clamp would have none: s = b·tanh(a/b)."""
    bound, moved = 1.5, 3
    flow = make(6, n_flows=1, scale_bound=bound)
    (bias,) = (p for name, p in flow.named_parameters() if name.endswith("net.outer.bias"))
    with torch.no_grad():
        bias[:moved] = 3 * bound  # the net is zero at the start, so that its bias is its output
    _, logdet = flow(*inputs(1, 6))
    tanh = math.tanh(3)
    assert float(logdet.detach()) == pytest.approx(moved * bound * tanh, rel=1e-12)
    logdet.sum().backward()
    expected = torch.full((moved,), 1 - tanh**2, dtype=bias.dtype)
    torch.testing.assert_close(bias.grad[:moved], expected, rtol=1e-10, atol=0)


def test_splits_follow_the_seed():
    order = [make(16, seed, n_flows=1).state_dict() for seed in (0, 0, 1)]
    splits = [torch.cat([v for k, v in state.items() if k.endswith(".order")]) for state in order]
    assert torch.equal(splits[0], splits[1])
    assert not torch.equal(splits[0], splits[2])


def test_one_dimension_is_refused():
    with pytest.raises(ConfigurationError, match=r"shape \(1,\).*flow=linear_activation"):
        make(1)
