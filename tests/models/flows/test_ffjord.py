"""FFJORD: equations with known solutions, the two ways to differentiate, the estimated trace, the solvers."""

import math

import pytest
import torch
from flow_cases import perturb
from small_models import flow_of, normal
from torch import nn
from torch.autograd import forward_ad

from flowdiff import api, registry
from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.flows.ffjord import ContinuousFlow, NetVelocity, Probe, Solver
from flowdiff.models.nn.embeddings import ConditionEmbedding
from flowdiff.testing.flows import log_density

EMBED, TOKENS = 6, 3
INJECT = pytest.mark.parametrize("inject", ["film", "concat", "cross_attention"])
# The three ways to compute the trace, for 4 dimensions.
ONE_LAYER, EXACT, ESTIMATE = {"depth": 0}, {"depth": 1, "exact_trace": 4}, {"depth": 1, "exact_trace": 3}
TRACES = pytest.mark.parametrize("trace", [ONE_LAYER, EXACT, ESTIMATE], ids=["one layer", "exact", "estimate"])
BACKPROPS = pytest.mark.parametrize("backprop", ["direct", "adjoint"])


class Linear(nn.Module):
    """g = rate(time)·(A z + b); the time is part of the condition's vector."""

    def __init__(self, dim: int, rate=lambda time: 1.0):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.A = nn.Parameter(torch.randn((dim, dim), generator=generator).double() / dim**0.5)
        self.b = nn.Parameter(torch.randn(dim, generator=generator).double())
        self.rate = rate

    def forward(self, z, cond):
        return self.rate(cond.vector[:, EMBED:]) * (z @ self.A.T + self.b)

    def solution(self, x, span: float):
        """z(span) of dz/dt = A z + b with z(0) = x: exp of the matrix that acts on (z, 1)."""
        dim = len(self.A)
        generator = torch.zeros(dim + 1, dim + 1, dtype=x.dtype)
        generator[:dim, :dim], generator[:dim, dim] = self.A.detach(), self.b.detach()
        after = torch.linalg.matrix_exp(span * generator)
        return x @ after[:dim, :dim].T + after[:dim, dim]


def linear_flow(net: Linear, solve: Solver) -> ContinuousFlow:
    return ContinuousFlow(NetVelocity(net, 4, None), 4, EMBED, solve, False).double()


def rk4(steps: int, backprop: str = "direct") -> Solver:
    return Solver(steps, None, None, backprop == "adjoint")


def make(shape=(4,), **settings) -> nn.Module:
    """Far from the identity, narrow, in float64."""
    settings = {"token_dim": TOKENS, "hidden": 16, "n_flows": 1, **settings}
    return perturb(flow_of("ffjord", shape, EMBED, **settings).double().eval())


def inputs(n: int = 4, shape=(4,)):
    x, e, tokens = normal((n, *shape), (n, EMBED), (n, 2, TOKENS))
    return x, Conditioning(e, tokens)


@BACKPROPS
def test_the_rate_alone_gives_an_exponential(backprop):
    """If the net is 0, dz/dt = a(e)·z: z = x·e^a and the log-determinant is Σ a."""
    x, cond = inputs()
    flow = flow_of("ffjord", (4,), EMBED, n_flows=1, steps=64, backprop=backprop).double()
    rate = flow.flow.flow.flows[0].rate
    torch.nn.init.normal_(rate.weight, std=0.5, generator=torch.Generator().manual_seed(2))
    z, logdet = flow(x, cond)
    a = rate(cond.vector)
    assert a.abs().max() > 1
    torch.testing.assert_close(z, x * a.exp(), rtol=1e-7, atol=1e-7)  # 64 steps of fourth order
    torch.testing.assert_close(logdet, a.sum(1), rtol=1e-12, atol=1e-12)


@BACKPROPS
def test_a_linear_equation_gives_the_matrix_exponential(backprop):
    x, cond = inputs()
    net = Linear(4)
    flow = linear_flow(net, rk4(64, backprop))
    z, logdet = flow(x, cond)
    # 64 steps of fourth order: 64⁻⁴/5! is 5e-10.
    close = {"rtol": 1e-8, "atol": 1e-8}
    torch.testing.assert_close(z, net.solution(x, 1.0), **close)
    torch.testing.assert_close(logdet, net.A.trace().expand(4), **close)
    back, inverse_logdet = flow.inverse(x, cond)
    torch.testing.assert_close(back, net.solution(x, -1.0), **close)
    torch.testing.assert_close(inverse_logdet, -net.A.trace().expand(4), **close)
    # ∫₀¹ (1 + cos πt)² dt = 3/2: the solution is that of dz/dt = A z + b at the time 3/2.
    in_time = Linear(4, lambda time: (1 + time[:, :1]) ** 2)
    z, logdet = linear_flow(in_time, rk4(64, backprop))(x, cond)
    # At t = 0 the rate is 4: (4/64)⁴/5! is 1e-7.
    torch.testing.assert_close(z, net.solution(x, 1.5), rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(logdet, 1.5 * net.A.trace().expand(4), rtol=2e-6, atol=2e-6)


def test_fixed_steps_converge_with_fourth_order_and_adaptive_steps_stay_within_the_tolerance():
    (x, cond), net = inputs(), Linear(4)

    def error(solve: Solver) -> float:
        return float((linear_flow(net, solve)(x, cond)[0] - net.solution(x, 1.0)).detach().abs().max())

    order = math.log2(error(rk4(8)) / error(rk4(16)))
    assert order == pytest.approx(4, abs=0.35)  # the next order contributes a few per cent
    for tolerance in (1e-3, 1e-6, 1e-9):
        assert error(Solver(None, tolerance, tolerance, False)) < 10 * tolerance  # the tolerance is that of one step
    coarse, fine = make(steps=16), make(steps=None, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(fine(x, cond), coarse(x, cond), rtol=1e-4, atol=1e-4)


@TRACES
@INJECT
def test_direct_and_adjoint_give_the_same_gradient(inject, trace):
    """In x, in the condition (through which the embedding learns), and in every parameter."""
    gradients = []
    for backprop in ("direct", "adjoint"):
        flow = make(backprop=backprop, steps=16, inject=inject, **trace)
        x, cond = inputs()
        leaves = [x.requires_grad_(), cond.vector.requires_grad_(), *flow.parameters()]
        leaves += [cond.tokens.requires_grad_()] if inject == "cross_attention" else []
        gradients.append(torch.autograd.grad(log_density(flow, x, cond).sum(), leaves))
    for direct, adjoint in zip(*gradients, strict=True):
        assert direct.abs().max() > 0
        torch.testing.assert_close(adjoint, direct, rtol=1e-5, atol=1e-5 * float(direct.abs().max()))  # rk4's error


def test_the_adjoint_refuses_a_second_derivative():
    flow, (x, cond) = make(backprop="adjoint", steps=2), inputs()
    log_p = log_density(flow, x.requires_grad_(), cond).sum()
    with pytest.raises(ConfigurationError, match=r"take flow\.backprop=direct"):
        torch.autograd.grad(log_p, x, create_graph=True)
    (score,) = torch.autograd.grad(log_density(flow, x, cond).sum(), x)
    assert score.isfinite().all()


@TRACES
def test_second_derivatives_with_backprop_direct(trace):
    flow = make(backprop="direct", steps=2, **trace)
    x, cond = inputs(2)
    assert torch.autograd.gradcheck(lambda x: log_density(flow, x, cond), x.requires_grad_())
    assert torch.autograd.gradgradcheck(lambda x: log_density(flow, x, cond), x)


@pytest.mark.parametrize("loss", ["denoising", "score_matching", "hybrid"])
def test_losses_that_differentiate_the_score_are_refused_under_the_adjoint(loss):
    flow = ["flow=ffjord", f"loss={loss}", "dataset=two_moons"]
    with pytest.raises(ConfigurationError, match=r"differentiates the score.*loss.gradient=directional, loss=nll"):
        api.build(*flow, "flow.backprop=adjoint")
    api.build(*flow, "flow.backprop=direct")


@pytest.mark.parametrize("loss", [["loss=nll"], ["loss=denoising", "loss.gradient=directional"]], ids=" ".join)
def test_first_order_losses_are_allowed_under_the_adjoint(loss):
    api.build("flow=ffjord", *loss, "dataset=two_moons", "flow.backprop=adjoint")


@pytest.mark.parametrize("settings", [["flow.backprop=adjoint"], ["flow.steps=null", "flow.rtol=0.1", "flow.atol=0.1"]])
def test_forward_mode_is_refused_if_torch_does_not_support_it(settings):
    with pytest.raises(ConfigurationError, match=r"forward_mode does not go with flow=ffjord.*directional"):
        api.build("flow=ffjord", "loss=denoising", "loss.gradient=forward_mode", "dataset=two_moons", *settings)


def slope(flow, x, cond, v, how: str) -> torch.Tensor:
    """⟨v, s(x)⟩ by forward mode, a difference, or double backward."""
    if how == "forward":
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(log_density(flow, forward_ad.make_dual(x, v), cond)).tangent
    if how == "difference":
        h = 1e-4
        return (log_density(flow, x + h * v, cond) - log_density(flow, x - h * v, cond)) / (2 * h)
    x = x.clone().requires_grad_()
    (score,) = torch.autograd.grad(log_density(flow, x, cond).sum(), x, create_graph=True)
    return (score * v).sum(1)


@TRACES
@pytest.mark.parametrize(
    ("how", "backprop"), [("forward", "direct"), ("difference", "direct"), ("difference", "adjoint")]
)
def test_first_order_forms_of_the_gradient_of_the_score(trace, how, backprop):
    """Also with an estimated trace: both ends of the difference use the same probe."""
    x, cond = inputs()
    v = torch.ones_like(x)
    expected_flow, flow = (make(steps=8, backprop=b, **trace) for b in ("direct", backprop))
    expected = slope(expected_flow, x, cond, v, "double_backward")
    found = slope(flow, x, cond, v, how)
    # The difference has an error of h², the adjoint that of rk4.
    close = {"rtol": 1e-3 if backprop == "adjoint" else 1e-6, "atol": 1e-6}
    torch.testing.assert_close(found, expected, **close)
    pairs = [torch.autograd.grad(s.sum(), list(f.parameters())) for s, f in ((found, flow), (expected, expected_flow))]
    for ours, its in zip(*pairs, strict=True):
        torch.testing.assert_close(ours, its, rtol=close["rtol"], atol=close["rtol"] * float(its.abs().max()))


@INJECT
@pytest.mark.parametrize("act", registry.names("activation"))
def test_the_trace_of_one_layer_is_that_of_its_jacobian(inject, act):
    flow = make(act=act, inject=inject, **ONE_LAYER)
    x, cond = inputs()
    derivative = flow.flow.flow.flows[0].velocity.equation(cond).derivative
    t, zero = torch.tensor(0.3, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    g, trace = derivative(t, (x, zero))
    J = torch.autograd.functional.jacobian(lambda v: derivative(t, (v, zero))[0].sum(0), x)  # (4, n, 4)
    assert (g.abs().mean(0) > 0.1).all()
    assert trace.abs().mean() > 0.05
    torch.testing.assert_close(trace, J.diagonal(dim1=0, dim2=2).sum(1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("trace", [ONE_LAYER, EXACT], ids=["one layer", "exact"])
def test_the_trace_integrates_to_the_log_determinant(trace):
    flow, (x, cond) = make(steps=32, **trace), inputs()
    _, logdet = flow(x, cond)
    J = torch.autograd.functional.jacobian(lambda v: flow(v, cond)[0].sum(0), x)
    torch.testing.assert_close(logdet, torch.linalg.slogdet(J.transpose(0, 1)).logabsdet, rtol=1e-5, atol=1e-5)


def test_the_trace_above_exact_trace_dimensions_is_estimated_in_the_same_way_in_every_batch():
    x, cond = inputs()
    z_exact, exact = make(steps=16, **EXACT)(x, cond)
    z, estimate = make(steps=16, **ESTIMATE)(x, cond)
    torch.testing.assert_close(z, z_exact)
    assert (estimate - exact).abs().max() > 0.01
    flow = make(depth=1, exact_trace=0, steps=4).train()
    together = flow(x, cond)[1]
    assert torch.equal(flow(x, cond)[1], together)
    alone = flow(x[2:3], Conditioning(cond.vector[2:3], cond.tokens[2:3]))[1]
    torch.testing.assert_close(alone, together[2:3], rtol=1e-10, atol=1e-10)


def probes(sigma: torch.Tensor, dim: int, cond_dim: int = 0) -> torch.Tensor:
    """ε (n, dim) for n noise levels and, if cond_dim > 0, n random conditions."""
    torch.manual_seed(0)
    embedding, probe = ConditionEmbedding(64, cond_dim), Probe(64, dim)
    cond = Conditioning(torch.randn(len(sigma), cond_dim)) if cond_dim else None
    return probe(embedding(0.25 * sigma.log(), cond).vector)


def test_the_estimate_is_unbiased_over_conditions():
    """The mean of εεᵀ is the identity, as if ε were drawn independently for every (σ, c)."""
    epsilon = probes(torch.logspace(-2, 2, 4096), 16, cond_dim=8)
    assert epsilon.mean(0).abs().max() < 5 / 4096**0.5
    # Standard errors: 1/√4096 off the diagonal, 0.7/√4096 on it.
    assert (epsilon.T @ epsilon / 4096 - torch.eye(16)).abs().max() < 5 / 4096**0.5


def test_neighbouring_noise_levels_have_unrelated_probes_and_rounding_does_not_matter():
    epsilon = probes(0.01 * 1.03 ** torch.arange(300), 1024)
    neighbours = (epsilon[1:] * epsilon[:-1]).mean(1)
    assert neighbours.abs().mean() < 0.05  # 1/√1024 = 0.03 if independent
    sigma = torch.logspace(-2, 2, 8)
    assert (probes(sigma * (1 + 1e-6), 1024) - probes(sigma, 1024)).abs().max() < 0.01


@pytest.mark.parametrize("shape", [(5,), (2, 2, 3)], ids=str)
@pytest.mark.parametrize("depth", [0, 1])
@INJECT
def test_inverse_with_eight_steps(shape, inject, depth):
    flow, (x, cond) = make(shape, inject=inject, n_flows=2, steps=8, depth=depth), inputs(4, shape)
    with torch.no_grad():
        z, logdet = flow(x, cond)
        back, inverse_logdet = flow.inverse(z, cond)
    assert not z.requires_grad
    assert not logdet.requires_grad
    assert (z - x).abs().max() > 0.3
    torch.testing.assert_close(back, x, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(inverse_logdet, -logdet, rtol=1e-4, atol=1e-4)


@TRACES
def test_autocast_does_not_reach_the_solver(trace):
    """A net in bfloat16 would leave only three correct digits in z, and in the inverse."""
    flow, (x, cond) = make(steps=4, **trace).float(), inputs()
    x, cond = x.float(), Conditioning(cond.vector.float(), cond.tokens.float())
    expected = *flow(x, cond), *flow.inverse(x, cond)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = *flow(x, cond), *flow.inverse(x, cond)
    for low, full in zip(found, expected, strict=True):
        assert torch.equal(low, full)
