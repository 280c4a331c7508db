"""The laws that every registered flow obeys, at the start and far from it, on the kinds of samples that it accepts."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from flow_cases import (
    SMOOTH,
    TOKEN_DIM,
    every_flow,
    every_flow_and_activation,
    label,
    make_flow,
    takes,
    variants,
)

from flowdiff import registry
from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.nn.embeddings import ConditionEmbedding

EMBED = 8
# A vector and an image of odd size; for flows that halve images, one channel with two levels, two channels with one.
SHAPES = [(5,), (2, 2, 3), (1, 4, 4), (2, 2, 4)]
EVERY_SHAPE = every_flow(*SHAPES, max_shapes=2)
A_SHAPE = every_flow(*SHAPES)
EVERY_ACTIVATION = every_flow_and_activation(registry.names("activation"), *SHAPES)
TINY = [(3,), (1, 2, 2), (1, 4, 4)]  # for numerical derivatives
STATES = pytest.mark.parametrize("far", [False, True], ids=["start", "far"])
CLASSES = pytest.mark.parametrize("cond_dim", [0, TOKEN_DIM], ids=["unconditional", "class"])
pytestmark = pytest.mark.filterwarnings("ignore:activation=leakyrelu as a flow layer:UserWarning")


def condition(n: int, cond_dim: int = TOKEN_DIM, seed: int = 2) -> Conditioning:
    """The embedding of n noise levels from 0.01 to 50 and, if cond_dim > 0, of n conditions with 1 to 3 tokens."""
    torch.manual_seed(seed)
    embedding = ConditionEmbedding(EMBED, cond_dim).double()
    c = Conditioning(torch.randn(n, cond_dim, dtype=torch.float64)) if cond_dim else None
    sigma = torch.logspace(-2, math.log10(50), n, dtype=torch.float64)
    with torch.no_grad():
        e = embedding(0.25 * sigma.log(), c).vector
    e = e / e.std()  # of order one, as after training
    if not cond_dim:
        return Conditioning(e)
    mask = torch.arange(3) <= (torch.arange(n) % 3)[:, None]
    return Conditioning(e, torch.randn(n, 3, cond_dim, dtype=torch.float64), mask)


def part(cond: Conditioning, i: int, n: int = 1) -> Conditioning:
    """The condition of sample i, n times."""
    return Conditioning(*(None if t is None else t[i].expand(n, *t[i].shape) for t in vars(cond).values()))


def samples(n: int, shape, scale: float = 1.5) -> torch.Tensor:
    return scale * torch.randn((n, *shape), generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def log_density(flow, x, cond) -> torch.Tensor:
    z, logdet = flow(x, cond)
    return logdet - 0.5 * z.flatten(1).square().sum(1) - 0.5 * z[0].numel() * math.log(2 * math.pi)


def jacobians(function, x) -> torch.Tensor:
    """∂ function(x)_b / ∂ x_b for each sample b, (B, D, D)."""
    D = x[0].numel()
    full = torch.autograd.functional.jacobian(lambda v: function(v).flatten(1).sum(0), x)
    return full.reshape(D, len(x), D).transpose(0, 1)


@pytest.mark.parametrize("case", variants(), ids=label)
def test_a_shape_is_accepted_or_refused_with_an_alternative(case):
    """The laws below test every flow; for any other shape the error says what to take instead."""
    assert any(takes(case, shape) for shape in SHAPES)
    for shape in [(1,), (1, 3, 5), *SHAPES]:
        if not takes(case, shape):
            with pytest.raises(ConfigurationError, match=r"shape|side|size"):
                make_flow(case, shape, EMBED)
            with pytest.raises(ConfigurationError, match=r"take "):
                make_flow(case, shape, EMBED)


@every_flow(*SHAPES, max_shapes=2, having=lambda flow: flow.identity_at_start)
def test_starts_as_the_identity(case, shape):
    x, cond = samples(4, shape), condition(4)
    z, logdet = make_flow(case, shape, EMBED)(x, cond)
    torch.testing.assert_close(z, x, rtol=0, atol=1e-12)  # a product of rotations rounds
    torch.testing.assert_close(logdet, torch.zeros(4, dtype=x.dtype), rtol=0, atol=1e-12)


@EVERY_SHAPE
def test_far_flows_are_far_from_the_identity(case, shape):
    """`far` changes every dimension, the volume and the dependence on the condition."""
    flow, x = make_flow(case, shape, EMBED, far=True), samples(16, shape)
    z, logdet = flow(x, condition(16))
    moved = (z - x).abs().flatten(1).mean(0)  # x has mean modulus 1.2
    assert moved.mean() > 0.25
    assert moved.min() > 0.1
    assert logdet.abs().mean() > 0.3
    other, _ = flow(x, condition(16, seed=5))
    assert ((z - other).abs().flatten(1).mean(0) > 0.01).all()


@EVERY_SHAPE
@STATES
@CLASSES
def test_inverse_and_log_determinants(case, shape, far, cond_dim):
    check_inverse_and_log_determinants(
        make_flow(case, shape, EMBED, far=far, token_dim=cond_dim), shape, condition(4, cond_dim)
    )


@EVERY_ACTIVATION
def test_inverse_and_log_determinants_for_every_activation(case, shape, activation):
    flow = make_flow(case, shape, EMBED, activation, far=True)
    check_inverse_and_log_determinants(flow, shape, condition(2))


def check_inverse_and_log_determinants(flow, shape, cond):
    n = len(cond.vector)
    x = samples(n, shape)
    z, logdet = flow(x, cond)
    back, inverse_logdet = flow.inverse(z, cond)
    assert z.shape == back.shape == x.shape
    assert logdet.shape == inverse_logdet.shape == (n,)
    # Exact up to rounding, 1e-16, times the condition number of the map and of its Jacobian, below 1e6 here.
    close = {"rtol": 1e-8, "atol": 1e-8 + flow.inverse_error}
    torch.testing.assert_close(back, x, **close)
    torch.testing.assert_close(inverse_logdet, -logdet, **close)
    there, _ = flow.inverse(x, cond)  # any point is a valid z
    torch.testing.assert_close(flow(there, cond)[0], x, **close)
    J = jacobians(lambda v: flow(v, cond)[0], x)
    torch.testing.assert_close(logdet, torch.linalg.slogdet(J).logabsdet, **close)
    J = jacobians(lambda v: flow.inverse(v, cond)[0], z.detach())
    torch.testing.assert_close(inverse_logdet, torch.linalg.slogdet(J).logabsdet, **close)


@A_SHAPE
@STATES
def test_round_trip_in_float32(case, shape, far):
    """The precision of training and sampling: x is recovered, and the log-determinants are those of float64."""
    flow, x, cond = make_flow(case, shape, EMBED, far=far), samples(8, shape), condition(8)
    singular = torch.linalg.svdvals(jacobians(lambda v: flow(v, cond)[0], x))
    with torch.no_grad():
        _, exact = flow(x, cond)
        cond = Conditioning(cond.vector.float(), cond.tokens.float(), cond.mask)
        z, logdet = flow.float()(x.float(), cond)
        back, inverse_logdet = flow.inverse(z, cond)
    # Rounding, 1.2e-7, a few dozen times, multiplied by the condition number of the Jacobian, 1 to 1e5 here.
    tolerance = flow.inverse_error + 4e-6 * singular[:, 0] / singular[:, -1]  # (B,)
    assert ((back - x).abs().flatten(1).amax(1) <= tolerance).all()
    assert ((logdet - exact).abs() <= tolerance).all()
    assert ((inverse_logdet + logdet).abs() <= tolerance).all()


@every_flow((6,), (1, 4, 4))
def test_autocast_reaches_the_nets_only(case, shape):
    """If the outputs of the nets are exact in bfloat16, the flow gives the same under autocast as in float32."""
    flow, x, cond = make_flow(case, shape, EMBED).float(), samples(4, shape).float(), condition(4)
    cond = Conditioning(cond.vector.float(), cond.tokens.float(), cond.mask)
    generator = torch.Generator().manual_seed(6)
    for p in flow.parameters():
        if p.ndim == 1 and not p.any():  # bias of a last layer, whose weights are 0, or an unused one
            p.data = torch.randint(-8, 9, p.shape, generator=generator) / 16
    with torch.no_grad():
        expected = *flow(x, cond), *flow.inverse(x, cond)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = *flow(x, cond), *flow.inverse(x, cond)
    assert expected[1].abs().max() > 0.03
    for low, full in zip(found, expected, strict=True):
        torch.testing.assert_close(low, full, rtol=1e-5, atol=1e-5)  # rounding of float32; that of bfloat16 is 4e-3


@every_flow((2,))
@STATES
def test_density_integrates_to_one(case, shape, far):
    flow = make_flow(case, shape, EMBED, far=far)
    one = condition(3)
    with torch.no_grad():
        draws, _ = flow.inverse(samples(8_000, shape, scale=1.0), part(one, 1, 8_000))
        low, high = draws.amin(0), draws.amax(0)
        margin = 0.15 * (high - low)
        ends = zip(low - margin, high + margin, strict=True)
        axes = [torch.linspace(a, b, 160, dtype=torch.float64) for a, b in ends]
        grid = torch.cartesian_prod(*axes)
        p = log_density(flow, grid, part(one, 1, len(grid))).exp()
        cell = math.prod(float(axis[1] - axis[0]) for axis in axes)
    # The mass outside the box is about one sample in 8,000. The error of the quadrature is smaller, except if p has
    # kinks: 0.017 for a spline far from the start, and it vanishes with a finer grid.
    assert float(p.sum()) * cell == pytest.approx(1.0, abs=1e-3 if flow.smooth else 0.03)


@EVERY_ACTIVATION
@STATES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_log_density_and_score_are_finite_far_out(case, shape, activation, far, dtype):
    """log p and the score are finite for ‖x‖ from 0 to 1e3."""
    flow = make_flow(case, shape, EMBED, activation, far).to(dtype)
    radius = torch.cat([torch.zeros(2), torch.logspace(0, 3, 10)]).double()
    direction = torch.nn.functional.normalize(samples(12, shape).flatten(1), dim=1)
    x = (direction * radius[:, None]).view(12, *shape).to(dtype).requires_grad_()
    cond = condition(12)
    log_p = log_density(flow, x, Conditioning(cond.vector.to(dtype), cond.tokens.to(dtype), cond.mask))
    (score,) = torch.autograd.grad(log_p.sum(), x)
    assert log_p.isfinite().all()
    assert score.isfinite().all()


@every_flow_and_activation(SMOOTH, *TINY, having=lambda flow: flow.twice_differentiable)
@STATES
def test_first_and_second_derivatives(case, shape, activation, far):
    """Autograd's first and second derivatives of log p in x and in the condition agree with finite differences."""
    flow, x, cond = make_flow(case, shape, EMBED, activation, far), samples(2, shape), condition(2)
    inputs = (x.requires_grad_(), cond.vector.requires_grad_())

    def function(x, e):
        return log_density(flow, x, cond.with_vector(e))

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@every_flow(*TINY, having=lambda flow: flow.twice_differentiable)
def test_the_score_is_a_gradient(case, shape):
    """∂s/∂x is symmetric, so s is a gradient."""
    flow, x, cond = make_flow(case, shape, EMBED, far=True), samples(2, shape).requires_grad_(), condition(2)

    def score(x):
        return torch.autograd.grad(log_density(flow, x, cond).sum(), x, create_graph=True)[0]

    J = jacobians(score, x)
    assert J.abs().max() > 0.1
    torch.testing.assert_close(J, J.mT, rtol=1e-9, atol=1e-9)


@EVERY_SHAPE
@STATES
def test_samples_of_a_batch_are_independent(case, shape, far):
    flow, x, cond = make_flow(case, shape, EMBED, far=far), samples(2, shape), condition(2)
    for direction in (flow.forward, flow.inverse):
        together = direction(x, cond)
        for i in range(2):
            alone = direction(x[i : i + 1], part(cond, i))
            for whole, single in zip(together, alone, strict=True):
                # Not bitwise: matrix products of different sizes round differently.
                torch.testing.assert_close(whole[i : i + 1], single, rtol=1e-10, atol=1e-10)


@every_flow((6,), (1, 4, 4))
def test_the_state_dict_is_complete(case, shape):
    """Loading makes a flow built with another seed the same flow, including its random splits."""
    flow, x, cond = make_flow(case, shape, EMBED, far=True), samples(4, shape), condition(4)
    other = make_flow(case, shape, EMBED, seed=99)
    other.load_state_dict(flow.state_dict())
    for mine, its in zip(flow(x, cond), other(x, cond), strict=True):
        assert torch.equal(mine, its)


@every_flow((4,), (1, 4, 4))
def test_every_parameter_learns(case, shape):
    """Near the start the likelihood has a gradient in every parameter."""
    flow, x, cond = make_flow(case, shape, EMBED), samples(8, shape), condition(8)
    # A small step away from the start, where the gradient behind a zero-initialised layer is 0.
    for p in flow.parameters():
        p.data += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(4)).double()
    log_density(flow, x, cond).sum().backward()
    without_gradient = [n for n, p in flow.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert without_gradient == []


@every_flow((1,))
def test_one_dimension_works(case, shape):
    flow, x, cond = make_flow(case, shape, EMBED, far=True), samples(4, shape), condition(4)
    z, logdet = flow(x, cond)
    assert (z - x).abs().max() > 0.1
    torch.testing.assert_close(flow.inverse(z, cond)[0], x, rtol=1e-8, atol=1e-8 + flow.inverse_error)
    assert logdet.isfinite().all()


def checkpoint_cases() -> list[tuple[str, dict, tuple[int, ...]]]:
    """Each flow with a setting `checkpoint`, in every form, on the last of SHAPES that it accepts."""
    flows = {name: registry.resolve("flow", name) for name in registry.names("flow")}
    having = {name for name, flow in flows.items() if "checkpoint" in registry.hyperparameters(flow)}
    cases = [case for case in variants() if case[0] in having and case[1].keys() <= {"form", "context"}]
    return [(*case, next(shape for shape in SHAPES[::-1] if takes(case, shape))) for case in cases]


@pytest.mark.parametrize(("name", "choices", "shape"), checkpoint_cases(), ids=str)
def test_checkpointing_changes_only_the_memory(name, choices, shape):
    """log p, its gradient in the parameters and the gradient of a loss of the score agree; fewer numbers are stored."""
    found = []
    for checkpoint in (False, True):
        flow = make_flow((name, {**choices, "checkpoint": checkpoint}), shape, EMBED, far=True).train()
        x, cond = samples(3, shape).requires_grad_(), condition(3)
        kept: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(partial(record, kept), lambda t: t):
            log_p = log_density(flow, x, cond)
        first = torch.autograd.grad(log_p.sum(), list(flow.parameters()), retain_graph=True)
        (score,) = torch.autograd.grad(log_p.sum(), x, create_graph=True)
        loss = (score * torch.linspace(-1, 1, score.numel()).view_as(score)).sum() + log_p.sum()
        second = torch.autograd.grad(loss, list(flow.parameters()), allow_unused=True)
        numbers = sum(t.numel() for t in kept if not isinstance(t, torch.nn.Parameter))
        found.append((numbers, [log_p.detach(), score.detach(), *first, *(g for g in second if g is not None)]))
    (stored, plain), (stored_with_checkpoint, checkpointed) = found
    assert stored_with_checkpoint < 0.7 * stored
    for one, other in zip(plain, checkpointed, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-12)  # the same operations, sums in another order


def record(kept: list[torch.Tensor], t: torch.Tensor) -> torch.Tensor:
    kept.append(t)
    return t
