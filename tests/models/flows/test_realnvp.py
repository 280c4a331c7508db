"""RealNVP: which dimensions its couplings transform, where its splits come from, and which form it chooses."""

import math

import pytest
import torch
from flow_cases import perturb
from small_models import flow_of, normal

from flowdiff.models.conditioning import Conditioning

EMBED = 4


def make(*shape: int, seed: int = 0, **settings):
    return flow_of("realnvp", shape, EMBED, seed, **{"hidden": 16, **settings}).double()


def inputs(n: int, *shape: int) -> tuple[torch.Tensor, Conditioning]:
    x, e = normal((n, *shape), (n, EMBED))
    return x, Conditioning(e)


@pytest.mark.parametrize("dim", [2, 7, 64])
@pytest.mark.parametrize("seed", range(3))
def test_one_coupling_transforms_half_of_the_dimensions_and_two_transform_all(dim, seed):
    x, cond = inputs(8, dim)
    for n_flows, expected in ((1, dim - dim // 2), (2, dim)):
        z, _ = perturb(make(dim, seed=seed, n_flows=n_flows))(x, cond)
        assert int(((z - x).abs().amax(0) > 1e-6).sum()) == expected


def test_log_scales_are_bounded_and_keep_a_gradient():
    """|s| < bound for every output a of a net, and the derivative is not 0, as with a clamp: s = b·tanh(a/b)."""
    bound, moved = 1.5, 3
    flow = make(6, n_flows=1, scale_bound=bound)
    (bias,) = (p for name, p in flow.named_parameters() if name.endswith("net.outer.bias"))
    with torch.no_grad():
        bias[:moved] = 3 * bound  # the weights are 0 at the start, so the bias is the output
    _, logdet = flow(*inputs(1, 6))
    tanh = math.tanh(3)
    assert float(logdet.detach()) == pytest.approx(moved * bound * tanh, rel=1e-12)
    logdet.sum().backward()
    expected = torch.full((moved,), 1 - tanh**2, dtype=bias.dtype)
    torch.testing.assert_close(bias.grad[:moved], expected, rtol=1e-10, atol=0)


def test_splits_depend_on_the_seed_alone():
    order = [make(16, seed=seed, n_flows=1).state_dict() for seed in (0, 0, 1)]
    splits = [torch.cat([v for k, v in state.items() if k.endswith(".order")]) for state in order]
    assert torch.equal(splits[0], splits[1])
    assert not torch.equal(splits[0], splits[2])


def test_the_image_form_transforms_the_white_squares_first():
    """With one coupling the white squares change; with four couplings and two levels every pixel changes."""
    x, cond = inputs(4, 1, 4, 4)
    flow = perturb(make(1, 4, 4, form="image", levels=1, n_flows=1))
    moved = (flow(x, cond)[0] - x).abs().amax(0)[0] > 1e-6
    assert torch.equal(moved, (torch.arange(4)[:, None] + torch.arange(4)) % 2 == 1)
    flow = perturb(make(1, 4, 4, form="image", levels=2, n_flows=4))
    assert ((flow(x, cond)[0] - x).abs().amax(0) > 1e-6).all()


def test_the_vector_form_keeps_its_initial_parameters_and_names():
    """Published results depend on the parameters and splits of a seed, their order and their names."""
    state = make(6, n_flows=2).state_dict()
    torch.manual_seed(0)
    order = torch.randperm(6)
    assert torch.equal(state["flow.flow.flows.0.order"], order)
    inner = torch.nn.Linear(3, 16)
    assert torch.equal(state["flow.flow.flows.1.net.inner.weight"], inner.weight.double())
    names = {"inner", "blocks.0.inner", "blocks.0.film.scale_shift", "blocks.0.outer", "outer"}
    assert {key.removeprefix("flow.flow.flows.1.net.").rpartition(".")[0] for key in state if ".1.net." in key} == names
