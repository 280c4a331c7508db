"""The laws of flowdiff.testing.flows for every registered flow, at the start and far from it, on several shapes."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from flow_cases import SMOOTH, every_flow, every_flow_and_activation, label, make_flow, pairs, takes, variants

from flowdiff import registry
from flowdiff.errors import ConfigurationError
from flowdiff.testing import flows as laws
from flowdiff.testing.flows import TOKEN_DIM
from flowdiff.testing.inputs import condition, samples

EMBED = 8
# A vector and an image of odd size; for flows that halve images, one channel with two levels, two channels with one.
SHAPES = [(5,), (2, 2, 3), (1, 4, 4), (2, 2, 4)]
EVERY_SHAPE = every_flow(*SHAPES, max_shapes=2)
EVERY_ACTIVATION = every_flow_and_activation(registry.names("activation"), *SHAPES)
TINY = [(3,), (1, 2, 2), (1, 4, 4)]  # for numerical derivatives
SLOW = pytest.mark.slow
# The hardest case of each law is quick, and the easier ones are slow tests.
STATES = pytest.mark.parametrize("far", [pytest.param(False, id="start", marks=SLOW), pytest.param(True, id="far")])
UNCONDITIONAL, CLASS = pytest.param(0, id="unconditional", marks=SLOW), pytest.param(TOKEN_DIM, id="class")
CLASSES = pytest.mark.parametrize("cond_dim", [UNCONDITIONAL, CLASS])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float64, marks=SLOW)], ids=str)
pytestmark = pytest.mark.filterwarnings("ignore:activation=leakyrelu as a flow layer:UserWarning")


def batch(n: int, shape: tuple[int, ...], cond_dim: int = TOKEN_DIM):
    """n samples and their condition."""
    return samples(n, shape), condition(n, EMBED, cond_dim)


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


# Each law on every flow: the flows and shapes, the states (far from the identity or not), the number of samples.
OF_A_BATCH = [
    (laws.starts_as_the_identity, pairs(*SHAPES, max_shapes=2, having=lambda flow: flow.identity_at_start), [False], 4),
    (laws.round_trip_in_float32, pairs(*SHAPES), [False, True], 8),
    (laws.autocast_reaches_only_the_nets, pairs((6,), (1, 4, 4)), [False], 4),
    (laws.score_jacobian_is_symmetric, pairs(*TINY, having=lambda flow: flow.twice_differentiable), [True], 2),
    (laws.samples_of_a_batch_are_independent, pairs(*SHAPES, max_shapes=2), [False, True], 2),
    (laws.every_parameter_learns, pairs((4,), (1, 4, 4)), [False], 8),
]


@pytest.mark.parametrize(
    ("law", "case", "shape", "far", "n"),
    [
        pytest.param(law, *pair, far, n, id="-".join([law.__name__, *map(label, pair), "far" if far else "start"]))
        for law, flows, states, n in OF_A_BATCH
        for pair in flows
        for far in states
    ],
)
def test_a_law_of_a_batch(law, case, shape, far, n):
    law(make_flow(case, shape, EMBED, far=far), *batch(n, shape))


@EVERY_SHAPE
def test_far_flows_are_far_from_the_identity(case, shape):
    """`far` changes every dimension, the volume and the dependence on the condition, with γ = 1."""
    flow, x = make_flow(case, shape, EMBED, far=True), samples(16, shape)
    z, logdet = flow(x, replace(condition(16, EMBED, TOKEN_DIM), gate=None))
    moved = (z - x).abs().flatten(1).mean(0)  # x has mean modulus 1.2
    assert moved.mean() > 0.25
    assert moved.min() > 0.1
    assert logdet.abs().mean() > 0.3
    other, _ = flow(x, replace(condition(16, EMBED, TOKEN_DIM, seed=5), gate=None))
    assert ((z - other).abs().flatten(1).mean(0) > 0.01).all()


@EVERY_SHAPE
@STATES
@CLASSES
def test_inverse_and_log_determinants(case, shape, far, cond_dim):
    flow = make_flow(case, shape, EMBED, far=far, token_dim=cond_dim)
    laws.round_trip(flow, *batch(4, shape, cond_dim))
    laws.log_det_is_exact(flow, *batch(4, shape, cond_dim))


@EVERY_SHAPE
@CLASSES
def test_the_gate(case, shape, cond_dim):
    """Without a gate a flow is what it is with γ = 1, and D stays near the Wiener filter at every σ."""
    flow = make_flow(case, shape, EMBED, far=True, token_dim=cond_dim)
    laws.no_gate_is_a_gate_of_one(flow, *batch(4, shape, cond_dim))
    assert flow.takes_gate
    laws.stays_near_the_wiener_filter(flow, samples(32, shape, scale=1.0), condition(32, EMBED, cond_dim))


@EVERY_ACTIVATION
def test_inverse_and_log_determinants_for_every_activation(case, shape, activation):
    flow = make_flow(case, shape, EMBED, activation, far=True)
    laws.round_trip(flow, *batch(2, shape))
    laws.log_det_is_exact(flow, *batch(2, shape))


@every_flow((2,))
@STATES
def test_density_integrates_to_one(case, shape, far):
    cond = condition(3, EMBED, TOKEN_DIM)[torch.tensor([1])]
    laws.density_integrates_to_one(make_flow(case, shape, EMBED, far=far), cond)


@EVERY_ACTIVATION
@STATES
@DTYPES
def test_log_density_and_score_are_finite_far_out(case, shape, activation, far, dtype):
    laws.finite_far_out(make_flow(case, shape, EMBED, activation, far), *batch(12, shape), dtype)


@every_flow_and_activation(SMOOTH, *TINY, having=lambda flow: flow.twice_differentiable)
@STATES
def test_first_and_second_derivatives(case, shape, activation, far):
    flow = make_flow(case, shape, EMBED, activation, far)
    laws.score_is_gradient(flow, *batch(2, shape))
    laws.score_is_differentiable(flow, *batch(2, shape))


@every_flow((6,), (1, 4, 4))
def test_the_state_dict_is_complete(case, shape):
    flow, other = make_flow(case, shape, EMBED, far=True), make_flow(case, shape, EMBED, seed=99)
    laws.state_dict_is_complete(flow, other, *batch(4, shape))


@every_flow((1,))
def test_one_dimension_works(case, shape):
    flow, (x, cond) = make_flow(case, shape, EMBED, far=True), batch(4, shape)
    assert (flow(x, cond)[0] - x).abs().max() > 0.1
    laws.round_trip(flow, x, cond)


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
        x, cond = samples(3, shape).requires_grad_(), condition(3, EMBED, TOKEN_DIM)
        kept: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(partial(record, kept), lambda t: t):
            log_p = laws.log_density(flow, x, cond)
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
