"""zuko's flows behind the adapter: they equal zuko's own, except where the adapter corrects them."""

from functools import partial

import pytest
import torch
import zuko
from flow_cases import perturb
from small_models import flow_of, normal
from torch import nn
from torch.autograd import forward_ad

from flowdiff import registry
from flowdiff.models.conditioning import Conditioning
from flowdiff.testing import flows as laws
from flowdiff.testing.densities import jacobians

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


def make(name: str, far: bool = True, seed: int = 0, shape=(DIM,), **settings) -> nn.Module:
    flow = flow_of(name, shape, EMBED, seed, **{"hidden": 16, **FAMILIES[name][0], **settings}).double()
    return perturb(flow) if far else flow


def inputs(n: int = 8, dim: int = DIM):
    x, e = normal((n, dim), (n, EMBED))
    return 1.5 * x, Conditioning(e)


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
    log_p = laws.log_density(ours, x, cond)
    torch.testing.assert_close(log_p, reference(cond.vector).log_prob(x), rtol=1e-12, atol=1e-12)


@ALL
def test_one_dimension_at_the_start_without_a_graph(name):
    """test_laws.py has the other cases. zuko's monotone maps would record a graph."""
    flow, (x, cond) = make(name, far=False, shape=(1,)), inputs(4, 1)
    laws.log_det_is_exact(flow, x, cond)
    with torch.no_grad():
        laws.round_trip(flow, x, cond)
        assert not flow(x, cond)[0].requires_grad
        assert not flow.inverse(x, cond)[0].requires_grad


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")  # raised by torch when forward mode is loaded
@pytest.mark.parametrize("name", [n for n in FAMILIES if registry.resolve("flow", n).forward_differentiable])
def test_forward_mode(name):
    flow, (x, cond) = make(name), inputs()
    v = torch.ones_like(x)
    log_p = partial(laws.log_density, flow, cond=cond)
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
def test_which_dimension_depends_on_which(name):
    """One map is triangular in the order of the dimensions; two passes are a coupling; two maps reverse the order."""
    x, cond = inputs(2)
    above = torch.ones(DIM, DIM).triu(1).bool()
    J = jacobians(lambda v: make(name, n_flows=1)(v, cond)[0], x)
    assert not J[:, above].any()
    assert J[:, ~above].all()
    J = jacobians(lambda v: make(name, n_flows=1, passes=2)(v, cond)[0], x)
    half = -(-DIM // 2)
    assert J[:, half:, :half].all()
    others = J.clone()
    others[:, half:, :half] = 0
    assert torch.equal(others, torch.diag_embed(J.diagonal(dim1=1, dim2=2)))
    two = jacobians(lambda v: make(name, n_flows=2)(v, cond)[0], x)
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
