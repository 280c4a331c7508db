"""Controls of flows: 0 at the start, and for every hint the laws of flows far from it."""

import copy
from dataclasses import replace

import pytest
import torch
from flow_cases import Case, label, make_flow, takes, variants
from torch import nn

from flowdiff.models.conditioning import Conditioning
from flowdiff.models.flows.base import Flow
from flowdiff.models.nn import control
from flowdiff.models.nn.control import HintPart
from flowdiff.testing import flows as laws
from flowdiff.testing.flows import TOKEN_DIM
from flowdiff.testing.inputs import condition, in_dtype, perturb, samples

EMBED = 8
SHAPES = [(4,), (1, 4, 4), (2, 2, 4)]
QUICK = {"linear_activation", "maf"}
PLANE = [case for case in variants() if takes(case, (2,))]


def cases(quick: set[str], found: list[Case]) -> pytest.MarkDecorator:
    """Parametrise by case: the quick ones as their YAML has them, and the others as slow tests."""
    marked = [pytest.param(c, id=label(c), marks=() if c[0] in quick and not c[1] else pytest.mark.slow) for c in found]
    return pytest.mark.parametrize("case", marked)


def first_shape(case: Case) -> tuple[int, ...]:
    return next(shape for shape in SHAPES if takes(case, shape))


def sides(shape: tuple[int, ...]) -> tuple[int, int]:
    """The sides of a hint for samples of this shape."""
    return (shape[1], shape[2]) if len(shape) == 3 else (4, 4)


def hinted(cond: Conditioning, shape: tuple[int, ...], channels: int = 2, seed: int = 8) -> Conditioning:
    """The condition with random hints."""
    generator = torch.Generator().manual_seed(seed)
    hint = torch.rand(len(cond.vector), channels, *sides(shape), generator=generator, dtype=torch.float64) * 2 - 1
    return replace(cond, hint=hint.to(cond.vector))


def controlled(flow: Flow, shape: tuple[int, ...], first: int = 1, far: bool = False) -> Flow:
    """A copy of a flow with a control of one channel of a hint; `far`: with parameters far from the start."""
    torch.manual_seed(5)
    found = copy.deepcopy(flow)
    control.attach(found, HintPart(first, (1, *sides(shape))))
    if far:
        for one in control.controls(found):
            perturb(one, 0.5)
    return found


def set_strength(flow: Flow, strength: float) -> None:
    for one in control.controls(flow):
        one.strength = strength


def far_flow(case: Case, shape: tuple[int, ...]) -> Flow:
    return make_flow(case, shape, EMBED, far=True)


@cases(QUICK, variants())
def test_at_the_start_and_at_strength_0_both_directions_are_those_of_the_base_bit_for_bit(case):
    shape = first_shape(case)
    base = far_flow(case, shape).float().requires_grad_(False)
    x = samples(4, shape).float()
    cond = hinted(in_dtype(condition(4, EMBED, TOKEN_DIM), torch.float32), shape)
    at_start, off = controlled(base, shape), controlled(base, shape, far=True)
    set_strength(off, 0.0)
    with torch.no_grad():
        for direction in ("forward", "inverse"):
            right = getattr(base, direction)(x, cond)
            for model, given in ((at_start, cond), (off, cond), (off, replace(cond, hint=None))):
                for found, value in zip(getattr(model, direction)(x, given), right, strict=True):
                    assert torch.equal(found, value)


@cases(QUICK, variants())
def test_with_random_hints_and_controls_far_from_the_start_the_flow_obeys_its_laws(case):
    shape = first_shape(case)
    flow = controlled(make_flow(case, shape, EMBED), shape, far=True)
    x, cond = samples(3, shape), hinted(condition(3, EMBED, TOKEN_DIM), shape)
    z, _ = flow(x, cond)
    assert (z - flow(x, replace(cond, hint=-cond.hint))[0]).abs().max() > 1e-3
    swapped = torch.stack([-cond.hint[:, 0], cond.hint[:, 1]], 1)  # of the other channel, which it does not read
    torch.testing.assert_close(flow(x, replace(cond, hint=swapped))[0], z)
    laws.log_det_is_exact(flow, x, cond)
    laws.round_trip(flow, x, cond)
    laws.samples_of_a_batch_are_independent(flow, x[:2], cond[torch.arange(2)])
    laws.no_gate_is_a_gate_of_one(flow, x, cond)
    if flow.takes_gate:
        many = hinted(condition(8, EMBED, TOKEN_DIM), shape)
        laws.stays_near_the_wiener_filter(flow, samples(8, shape, scale=1.0), many)


@cases(set(), [case for case in PLANE if not case[1]])
def test_the_density_integrates_to_one_for_every_hint(case):
    flow = controlled(make_flow(case, (2,), EMBED), (2,), far=True)
    laws.density_integrates_to_one(flow, hinted(condition(3, EMBED, TOKEN_DIM), (2,))[torch.tensor([1])])


@cases(set(), variants())
def test_the_score_is_a_gradient_that_can_be_differentiated(case):
    shape = next((shape for shape in [(3,), (1, 2, 2), (1, 4, 4)] if takes(case, shape)), SHAPES[-1])
    flow = controlled(make_flow(case, shape, EMBED), shape, far=True)
    x, cond = samples(2, shape), hinted(condition(2, EMBED, TOKEN_DIM), shape)
    if flow.twice_differentiable:
        laws.score_is_gradient(flow, x, cond)
        laws.score_is_differentiable(flow, x, cond)
        laws.score_jacobian_is_symmetric(flow, x, cond)


@cases(QUICK, variants())
def test_every_parameter_of_the_control_learns_and_none_of_the_base(case):
    shape = first_shape(case)
    flow = controlled(far_flow(case, shape).requires_grad_(False), shape)
    for one in control.controls(flow):
        perturb(one, 0.1)
    laws.log_density(flow, samples(8, shape), hinted(condition(8, EMBED, TOKEN_DIM), shape)).sum().backward()
    trained = {id(p) for one in control.controls(flow) for p in one.parameters()}
    assert trained
    for name, p in flow.named_parameters():
        assert (p.grad is not None and bool(p.grad.any())) == (id(p) in trained), name


@cases({"maf"}, variants())
def test_several_controls_add_up_with_their_strengths(case):
    shape = first_shape(case)
    base = far_flow(case, shape)
    x, cond = samples(2, shape), hinted(condition(2, EMBED, TOKEN_DIM), shape)
    one, both = controlled(base, shape, first=0, far=True), copy.deepcopy(base)
    control.add(both, copy.deepcopy(one), 0, 0.7)
    control.add(both, controlled(base, shape, first=0, far=True), 1, 0.0)
    alone = copy.deepcopy(one)
    set_strength(alone, 0.7)
    assert len(list(control.controls(both))) == 2 * len(list(control.controls(one)))
    for direction in ("forward", "inverse"):
        pairs = zip(getattr(both, direction)(x, cond), getattr(alone, direction)(x, cond), strict=True)
        assert all(torch.equal(found, right) for found, right in pairs)
    set_strength(both, 0.35)
    same = replace(cond, hint=cond.hint[:, :1].expand(-1, 2, *sides(shape)))
    with torch.no_grad():  # two equal controls of one hint, each at half the strength
        torch.testing.assert_close(both(x, same), alone(x, same))


def test_a_hint_is_squeezed_as_an_image_is():
    hint = torch.arange(16.0).view(1, 1, 4, 4)
    assert control.squeezed(hint, (2, 2))[0, :, 0, 1].tolist() == [2, 3, 6, 7]
    assert torch.equal(control.squeezed(hint, (4, 4)), hint)


def test_a_network_without_such_nets_has_nothing_to_control():
    assert not list(control.controllable(nn.Sequential(nn.Linear(2, 2)), HintPart(0, (1, 2, 2))))
