"""zuko's flows behind the adapter: they equal zuko's own, except where the adapter corrects them."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import zuko
from flow_cases import perturb
from torch import nn
from torch.autograd import forward_ad

from flowdiff import registry
from flowdiff.models.conditioning import Conditioning

DIM, EMBED = 5, 6
FAMILIES = {  # our settings, and zuko's class with the same settings
    "maf": (
        {"min_slope": 0.1},
        partial(zuko.flows.MAF, univariate=partial(zuko.transforms.MonotonicAffineTransform, slope=0.1)),
    ),
    "nsf": ({"bins": 4, "min_slope": 1e-2}, partial(zuko.flows.NSF, bins=4, slope=1e-2)),
    "naf": (
        {"signal": 4, "monotone_hidden": 8},
        partial(zuko.flows.NAF, signal=4, network={"hidden_features": [8, 8]}),
    ),
}
ALL = pytest.mark.parametrize("name", FAMILIES)


def make(name: str, far: bool = True, seed: int = 0, **settings) -> nn.Module:
    torch.manual_seed(seed)
    runtime = {"embed_dim": EMBED, "activation": registry.create("activation", "swish")}
    settings = {"shape": (DIM,), "hidden": 16, **FAMILIES[name][0], **settings}
    flow = registry.create("flow", name, **runtime, **settings).double()
    return perturb(flow) if far else flow


def inputs(n: int = 8, dim: int = DIM):
    generator = torch.Generator().manual_seed(1)
    x, e = (torch.randn((n, d), generator=generator, dtype=torch.float64) for d in (dim, EMBED))
    return 1.5 * x, Conditioning(e)


def jacobian(function, x):
    return torch.autograd.functional.jacobian(lambda v: function(v).sum(0), x).transpose(0, 1)  # (B, D, D)


def test_every_family_is_covered():
    registered = [
        n for n in registry.names("flow") if registry.resolve("flow", n).__module__ == "flowdiff.models.flows.zuko"
    ]
    assert sorted(FAMILIES) == registered


@ALL
def test_log_prob_equals_that_of_zuko(name):
    """zuko's flow with our parameters has our log p; NAF with one map, because zuko bounds the values between two."""
    n_flows = 1 if name == "naf" else 3
    ours = make(name, n_flows=n_flows)
    reference = FAMILIES[name][1](DIM, EMBED, transforms=n_flows, hidden_features=[16, 16], activation=nn.SiLU).double()
    state = {key.replace(".univariate.make.", ".univariate."): v for key, v in ours.transform.state_dict().items()}
    reference.transform.load_state_dict(state)
    if name == "naf":
        reference.transform.transforms[0].order = ours.transform.transforms[0].order
    x, cond = inputs()
    z, logdet = ours(x, cond)
    log_p = logdet - 0.5 * z.square().sum(1) - 0.5 * DIM * math.log(2 * math.pi)
    torch.testing.assert_close(log_p, reference(cond.vector).log_prob(x), rtol=1e-12, atol=1e-12)


@ALL
@pytest.mark.parametrize("far", [False, True], ids=["start", "far"])
@pytest.mark.parametrize("shape", [(DIM,), (1, 2, 3), (1,)], ids=str)
def test_inverse_and_log_determinants(name, far, shape):
    flow = make(name, far, shape=shape)
    x, cond = inputs(4, math.prod(shape))
    x = x.view(4, *shape)
    with torch.no_grad():
        z, logdet = flow(x, cond)
        back, inverse_logdet = flow.inverse(z, cond)
        there, _ = flow.inverse(x, cond)
        again, _ = flow(there, cond)
    assert not z.requires_grad  # zuko's monotone maps record a graph
    assert not back.requires_grad
    close = {"rtol": 1e-8, "atol": 1e-8}
    torch.testing.assert_close(back, x, **close)
    torch.testing.assert_close(inverse_logdet, -logdet, **close)
    torch.testing.assert_close(again, x, **close)
    J = jacobian(lambda v: flow(v.view_as(x), cond)[0].flatten(1), x.flatten(1))
    torch.testing.assert_close(logdet, torch.linalg.slogdet(J).logabsdet, rtol=1e-8, atol=1e-8)
    if far:
        assert (z - x).abs().max() > 0.3
    elif flow.identity_at_start:
        torch.testing.assert_close(z, x, rtol=0, atol=1e-12)


@ALL
def test_the_inverse_is_differentiable(name):
    flow, (x, cond) = make(name), inputs(2)
    J = jacobian(lambda v: flow.inverse(v, cond)[0], x)
    torch.testing.assert_close(flow.inverse(x, cond)[1], torch.linalg.slogdet(J).logabsdet, rtol=1e-8, atol=1e-8)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")  # raised by torch when forward mode is loaded
@pytest.mark.parametrize("name", [n for n in FAMILIES if registry.resolve("flow", n).forward_differentiable])
def test_forward_mode(name):
    flow, (x, cond) = make(name), inputs()
    v = torch.ones_like(x)

    def log_p(x):
        z, logdet = flow(x, cond)
        return logdet - 0.5 * z.square().sum(1)

    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(log_p(forward_ad.make_dual(x, v))).tangent
    (score,) = torch.autograd.grad(log_p(x.requires_grad_()).sum(), x, create_graph=True)
    close = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(tangent, (score * v).sum(1), **close)
    parameters = [p for p in flow.parameters() if p.requires_grad]
    gradients = [torch.autograd.grad(s.sum(), parameters, allow_unused=True) for s in (tangent, score)]
    for ours, its in zip(*gradients, strict=True):
        if its is not None:
            torch.testing.assert_close(ours, its, **close)


@ALL
def test_z_depends_on_the_condition_and_has_the_shape_of_x(name):
    flow, (x, cond) = make(name), inputs()
    z, _ = flow(x, cond)
    other, _ = flow(x, Conditioning(cond.vector.flip(0)))
    assert z.shape == x.shape
    assert ((z - other).abs().mean(0) > 0.01).all()


@ALL
def test_which_dimension_depends_on_which(name):
    """One map is triangular in the order of the dimensions; two passes are a coupling; two maps reverse the order."""
    x, cond = inputs(2)
    above = torch.ones(DIM, DIM).triu(1).bool()
    J = jacobian(lambda v: make(name, n_flows=1)(v, cond)[0], x)
    assert not J[:, above].any()
    assert J[:, ~above].all()
    J = jacobian(lambda v: make(name, n_flows=1, passes=2)(v, cond)[0], x)
    half = -(-DIM // 2)
    assert J[:, half:, :half].all()
    others = J.clone()
    others[:, half:, :half] = 0
    assert torch.equal(others, torch.diag_embed(J.diagonal(dim1=1, dim2=2)))
    two = jacobian(lambda v: make(name, n_flows=2)(v, cond)[0], x)
    assert two.abs().min() > 0


@ALL
def test_random_orders_depend_on_the_seed_and_are_in_the_state_dict(name):
    flows = [make(name, seed=seed, shape=(16,), random_order=True) for seed in (0, 0, 1)]
    orders = [torch.stack([t.order for t in flow.transform.transforms]) for flow in flows]
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
    x, cond = inputs(2, 16)
    flows[2].load_state_dict(flows[0].state_dict())
    assert torch.equal(flows[2](x, cond)[0], flows[0](x, cond)[0])


def test_naf_is_onto_and_has_an_inverse_far_out():
    """zuko bounds z between two maps, and searches the inverse within |x| = 10."""
    flow, (_, cond) = make("naf", n_flows=3, shape=(1,)), inputs(2)
    x = torch.tensor([[100.0], [-100.0]], dtype=torch.float64)
    with torch.no_grad():
        z, _ = flow(x, cond)
        torch.testing.assert_close(flow.inverse(z, cond)[0], x, rtol=1e-8, atol=0)
        further, _ = flow(100 * x, cond)
    assert (further.abs() > 30 * z.abs()).all()
    assert torch.equal(further.sign(), x.sign())


@pytest.mark.parametrize("monotone_hidden", [16, 32, 64])
def test_naf_starts_near_the_identity(monotone_hidden):
    flow, (_, cond) = make("naf", far=False, n_flows=3, monotone_hidden=monotone_hidden), inputs(11)
    x = torch.linspace(-5, 5, 11, dtype=torch.float64)[:, None].expand(11, DIM)
    z, _ = flow(x, cond)
    assert ((z - x).abs() < 0.2 * x.abs() + 0.05).all()
    torch.testing.assert_close(z[[4, 6]], x[[4, 6]], rtol=0, atol=1e-5)  # x = ±1; initialised in float32
