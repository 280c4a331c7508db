"""`check_flow` accepts a right flow, and each law of flows rejects a flow that breaks it."""

import copy

import pytest
import torch
from broken import but, returning
from flow_cases import label, make_flow, takes, variants

from flowdiff.models.conditioning import Conditioning
from flowdiff.models.flows.base import Flow
from flowdiff.models.flows.gate import gated
from flowdiff.testing import check_flow
from flowdiff.testing import flows as laws
from flowdiff.testing.inputs import condition, perturb, samples

EMBED = 4


class Scaled(Flow):
    """z = x·exp(s), s linear in the embedding and gated: a right flow."""

    takes_gate = True

    def __init__(self, dim=2):
        super().__init__()
        self.log_scale = torch.nn.Linear(EMBED, dim)
        torch.nn.init.zeros_(self.log_scale.weight)
        torch.nn.init.zeros_(self.log_scale.bias)

    def forward(self, x, cond):
        s = torch.tanh(gated(self.log_scale(cond.vector).to(x), cond))
        return x * s.exp(), s.sum(1)

    def inverse(self, z, cond):
        s = torch.tanh(gated(self.log_scale(cond.vector).to(z), cond))
        return z * (-s).exp(), -s.sum(1)


class NotGated(Scaled):
    def forward(self, x, cond):
        return super().forward(x, Conditioning(cond.vector))

    def inverse(self, z, cond):
        return super().inverse(z, Conditioning(cond.vector))


class ShiftedByTheGate(Scaled):
    """Its shift γ² is small at high noise, and missing without a gate."""

    def forward(self, x, cond):
        z, logdet = super().forward(x, cond)
        return (z, logdet) if cond.gate is None else (z + cond.gate[:, None], logdet)


class Bend(torch.autograd.Function):
    """x² with the right derivative and a wrong second one."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * 2 * x.detach()


class NotAGradient(Scaled):
    """Adds (x₂, −x₁), which is not a gradient, to autograd's gradient of log p."""

    def forward(self, x, cond):
        x = x.clone()
        if x.requires_grad:
            x.register_hook(lambda grad: grad + x.flip(1) * torch.tensor([1.0, -1.0]))
        return super().forward(x, cond)


class SplitNotSaved(Scaled):
    identity_at_start = False

    def __init__(self, dim=2):
        super().__init__(dim)
        self.order = torch.randn(dim, dtype=torch.float64)

    def forward(self, x, cond):
        z, logdet = super().forward(x, cond)
        return z + gated(self.order.to(z).expand_as(z), cond), logdet

    def inverse(self, z, cond):
        return super().inverse(z - gated(self.order.to(z).expand_as(z), cond), cond)


class UnusedParameter(Scaled):
    def __init__(self, dim=2):
        super().__init__(dim)
        self.unused = torch.nn.Parameter(torch.zeros(3))


NotTheIdentity = but(
    returning(Scaled, forward=lambda z, logdet: (z + 1, logdet)),
    inverse=lambda self, z, cond: Scaled.inverse(self, z - 1, cond),
)
WrongInverse = returning(Scaled, inverse=lambda x, logdet: (x + 1e-6, logdet))
# in both directions, so that they still cancel
WrongLogDet = returning(Scaled, **dict.fromkeys(("forward", "inverse"), lambda x, logdet: (x, 1.1 * logdet)))
OneLogDetForAll = returning(Scaled, forward=lambda z, logdet: (z, logdet.mean()))
# works with numbers that are rounded as in bfloat16, but only in float32
Float32Inside = returning(Scaled, inverse=lambda x, ld: (x if x.dtype == torch.float64 else x.bfloat16().float(), ld))
# a matrix product, which autocast does in bfloat16
AutocastOutside = returning(Scaled, forward=lambda z, logdet: (z @ torch.eye(2, dtype=z.dtype), logdet))
LargerDensity = returning(Scaled, forward=lambda z, logdet: (z, logdet + 0.01))
Overflows = returning(Scaled, forward=lambda z, logdet: (z, logdet + (z**8).exp().log().sum(1)))
DetachedLogDet = returning(Scaled, forward=lambda z, logdet: (z, logdet + z.sin().sum(1).detach()))
FirstOrderOnly = returning(Scaled, forward=lambda z, logdet: (z, logdet + Bend.apply(z).sum(1)))
BatchNormalised = returning(Scaled, forward=lambda z, logdet: (z - z.mean(0), logdet))


def far(kind, **settings):
    torch.manual_seed(0)
    return perturb(kind(**settings).double().eval())


def batch(n=4):
    return samples(n, (2,)), condition(n, EMBED)


BROKEN = [
    (laws.stays_near_the_wiener_filter, NotGated, "the distance of D to the Wiener filter is bounded"),
    (laws.no_gate_is_a_gate_of_one, ShiftedByTheGate, "forward with γ = 1 is forward without a gate"),
    (laws.starts_as_the_identity, NotTheIdentity, "starts as the identity"),
    (laws.round_trip, WrongInverse, r"inverse\(forward\(x\)\) = x"),
    (laws.round_trip, LargerDensity, "log-determinants of both directions cancel"),
    (laws.round_trip, OneLogDetForAll, "one log-determinant for each sample"),
    (laws.log_det_is_exact, WrongLogDet, r"log\|det\| of the Jacobian"),
    (laws.round_trip_in_float32, Float32Inside, "float32"),
    (laws.autocast_reaches_only_the_nets, AutocastOutside, "autocast"),
    (laws.finite_far_out, Overflows, "finite for 0 ≤ ‖x‖ ≤ 1e3"),
    (laws.score_is_gradient, DetachedLogDet, "the score is the gradient of log p"),
    (laws.score_is_differentiable, FirstOrderOnly, "autograd differentiates the score"),
    (laws.score_jacobian_is_symmetric, NotAGradient, r"∂s/∂x"),
    (laws.samples_of_a_batch_are_independent, BatchNormalised, "does not depend on its batch"),
    (laws.every_parameter_learns, UnusedParameter, "no gradient in unused"),
]


@pytest.mark.parametrize(("law", "kind", "message"), BROKEN)
def test_a_flow_that_breaks_a_law_is_rejected(law, kind, message):
    make = copy.deepcopy if law is laws.autocast_reaches_only_the_nets else perturb  # which fills the zeros itself
    right, wrong = (make(made().double().eval()) for made in (Scaled, kind))
    if law is laws.starts_as_the_identity:
        right = Scaled().double()
    given = batch(12)
    law(right, *given)
    with pytest.raises(AssertionError, match=message):
        law(wrong, *given)


def test_a_density_that_does_not_integrate_to_one_is_rejected():
    laws.density_integrates_to_one(far(Scaled), condition(1, EMBED))
    with pytest.raises(AssertionError, match=r"∫p = 1.*1\.01005"):
        laws.density_integrates_to_one(far(LargerDensity), condition(1, EMBED))


def test_a_state_dict_that_does_not_determine_the_flow_is_rejected():
    laws.state_dict_is_complete(far(Scaled), Scaled().double(), *batch())
    with pytest.raises(AssertionError, match="the state dict determines the flow"):
        laws.state_dict_is_complete(far(SplitNotSaved), SplitNotSaved().double(), *batch())


TRIED = [
    NotGated,
    ShiftedByTheGate,
    NotTheIdentity,
    WrongInverse,
    WrongLogDet,
    OneLogDetForAll,
    LargerDensity,
    Overflows,
]


@pytest.mark.parametrize("kind", [*TRIED, BatchNormalised, UnusedParameter])
def test_check_flow_tries_every_law(kind):
    with pytest.raises(AssertionError, match="is broken"):
        check_flow(kind(), (2,), EMBED)


def test_check_flow_accepts_a_right_flow_and_leaves_it_as_it_is():
    flow = Scaled()
    before = copy.deepcopy(flow.state_dict())
    check_flow(flow, (2,), EMBED)
    assert flow.training
    assert all(torch.equal(value, before[key]) for key, value in flow.state_dict().items())


def test_a_function_that_makes_flows_is_tried_in_every_conditioning_mode():
    seen = []

    def make(token_dim):
        seen.append(token_dim)
        return Scaled()

    check_flow(make, (2,), EMBED)
    assert set(seen) == {0, laws.TOKEN_DIM}
    with pytest.raises(AssertionError, match="the state dict determines the flow"):
        check_flow(lambda token_dim: SplitNotSaved(), (2,), EMBED)


def test_the_message_says_by_how_much_and_where():
    with pytest.raises(AssertionError) as error:
        laws.round_trip(far(WrongInverse), *batch())
    assert "at index [" in str(error.value)
    assert "an error of 1e-06 where" in str(error.value)
    assert "8 of 8 values are wrong" in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in variants() if not case[1]], ids=label)
def test_check_flow_accepts_every_registered_flow(case):
    shape = next(shape for shape in [(2,), (1, 2, 2), (1, 4, 4)] if takes(case, shape))
    check_flow(lambda token_dim: make_flow(case, shape, EMBED, token_dim=token_dim, seed=token_dim), shape, EMBED)
