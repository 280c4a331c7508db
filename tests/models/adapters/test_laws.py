"""An adapted model is its base at the start, and far from it a flow like any other; merged it is the same model."""

import copy

import pytest
import torch
from flow_cases import Case, label, make_flow, takes, variants
from torch import nn

from flowdiff import registry
from flowdiff.models.adapters import deltas
from flowdiff.models.flows.base import Flow
from flowdiff.testing import flows as laws
from flowdiff.testing.flows import TOKEN_DIM
from flowdiff.testing.inputs import condition, in_dtype, samples
from flowdiff.testing.networks import noised

EMBED = 8
SHAPES = [(4,), (1, 4, 4), (2, 2, 4)]
QUICK = {"linear_activation", "maf"}
PLANE = [case for case in variants() if takes(case, (2,))]


def cases(quick: set[str], found: list[Case]) -> pytest.MarkDecorator:
    """Parametrise by case: the quick ones as their YAML has them, and the others as slow tests."""
    marked = [pytest.param(c, id=label(c), marks=() if c[0] in quick and not c[1] else pytest.mark.slow) for c in found]
    return pytest.mark.parametrize("case", marked)


def adapt(model: nn.Module, name: str = "lora", **given) -> nn.Module:
    """A copy of a model with an adapter."""
    torch.manual_seed(5)
    adapted = copy.deepcopy(model)
    registry.create("adapter", {**registry.completed("adapter", {"name": name}), "run": "base", **given}).attach(
        adapted
    )
    return adapted


def move(adapted: nn.Module, gain: float = 0.3, seed: int = 6) -> nn.Module:
    """Give the changes of a model random parameters, in place: W changes by about `gain` of an initial weight."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, module, key, delta in deltas.changed(adapted):
            for p in delta.parameters():
                p.copy_(torch.randn(p.shape, generator=generator).to(p))
            weight = getattr(module, key)
            fan_in = weight[0].numel() if weight.ndim > 1 else 1
            size = gain / fan_in**0.5 / delta.change().std(correction=0).clamp(min=1e-3)
            *_, last = delta.parameters()
            last.mul_(size)
    return adapted


def first_shape(case: Case) -> tuple[int, ...]:
    return next(shape for shape in SHAPES if takes(case, shape))


def far(case: Case, shape: tuple[int, ...]) -> Flow:
    """A flow whose parameters are far from the start, as a base is."""
    return make_flow(case, shape, EMBED, far=True)


@cases(QUICK, variants())
@pytest.mark.parametrize("name", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_at_the_start_both_directions_are_those_of_the_base_bit_for_bit(case, name):
    shape = first_shape(case)
    base = far(case, shape).float()
    adapted = adapt(base, name)
    base.requires_grad_(False)  # as of a loaded model: torch multiplies otherwise in another order
    x, cond = samples(4, shape).float(), in_dtype(condition(4, EMBED, TOKEN_DIM), torch.float32)
    with torch.no_grad():
        for direction in ("forward", "inverse"):
            for found, right in zip(
                getattr(adapted, direction)(x, cond), getattr(base, direction)(x, cond), strict=True
            ):
                assert torch.equal(found, right)


@cases(QUICK, variants())
def test_far_from_the_start_the_flow_obeys_its_laws(case):
    shape = first_shape(case)
    base = far(case, shape)
    adapted = move(adapt(base, rank=2))
    x, cond = samples(3, shape), condition(3, EMBED, TOKEN_DIM)
    assert (adapted(x, cond)[0] - base(x, cond)[0]).abs().max() > 0.01
    laws.log_det_is_exact(adapted, x, cond)
    laws.round_trip(adapted, x, cond)
    laws.samples_of_a_batch_are_independent(adapted, x[:2], cond[torch.arange(2)])
    laws.no_gate_is_a_gate_of_one(adapted, x, cond)
    if base.takes_gate:
        laws.stays_near_the_wiener_filter(adapted, samples(8, shape, scale=1.0), condition(8, EMBED, TOKEN_DIM))


@cases(QUICK, variants())
def test_merged_is_unmerged_in_both_directions(case):
    shape = first_shape(case)
    adapted = move(adapt(far(case, shape), rank=2, alpha=3.0, rslora=True)).float()
    merged = copy.deepcopy(adapted)
    deltas.merge(merged)
    assert not list(deltas.changed(merged))
    assert set(dict(merged.named_parameters())) == set(dict(far(case, shape).named_parameters()))
    x, cond = samples(4, shape).float(), in_dtype(condition(4, EMBED, TOKEN_DIM), torch.float32)
    with torch.no_grad():
        for direction in ("forward", "inverse"):
            pairs = zip(getattr(merged, direction)(x, cond), getattr(adapted, direction)(x, cond), strict=True)
            for found, right in pairs:
                torch.testing.assert_close(found, right, rtol=1e-6, atol=1e-6)


@cases(set(), [case for case in PLANE if not case[1]])
def test_the_density_integrates_to_one(case):
    adapted = move(adapt(far(case, (2,)), rank=1))
    laws.density_integrates_to_one(adapted, condition(3, EMBED, TOKEN_DIM)[torch.tensor([1])])


@cases(set(), variants())
def test_the_score_is_a_gradient_that_can_be_differentiated(case):
    shape = next((shape for shape in [(3,), (1, 2, 2), (1, 4, 4)] if takes(case, shape)), SHAPES[-1])
    adapted = move(adapt(far(case, shape), rank=1))
    x, cond = samples(2, shape), condition(2, EMBED, TOKEN_DIM)
    if adapted.twice_differentiable:
        laws.score_is_gradient(adapted, x, cond)
        laws.score_is_differentiable(adapted, x, cond)
        laws.score_jacobian_is_symmetric(adapted, x, cond)


@cases(QUICK, variants())
def test_every_parameter_of_the_adapter_learns_and_none_of_the_base(case):
    shape = first_shape(case)
    adapted = move(adapt(far(case, shape), rank=2), gain=0.05)
    laws.log_density(adapted, samples(8, shape), condition(8, EMBED, TOKEN_DIM)).sum().backward()
    trained = {id(p) for *_, delta in deltas.changed(adapted) for p in delta.parameters()}
    for name, p in adapted.named_parameters():
        assert (p.grad is not None and bool(p.grad.any())) == (id(p) in trained), name


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        pytest.param("unet", {"channels": [8, 8], "norm_groups": 4}, marks=pytest.mark.slow),
        ("mlp", {"width": 16, "embed_dim": 8}),
    ],
)
def test_raw_networks_start_as_their_base_and_are_merged(name, settings):
    torch.manual_seed(0)
    runtime = {"shape": (1, 8, 8), "cond_dim": 3, "activation": registry.create("activation", "swish")}
    base = registry.create("network", {**registry.completed("network", {"name": name}), **settings}, **runtime).eval()
    for p in base.parameters():
        p.data += 0.1 * torch.randn_like(p)
    x, sigma, cond = noised(2, (1, 8, 8), cond_dim=3)
    x, sigma, cond = x.float(), sigma.float(), in_dtype(cond, torch.float32)
    adapted = adapt(base, rank=2)
    base.requires_grad_(False)
    with torch.no_grad():
        assert torch.equal(adapted(x, sigma, cond), base(x, sigma, cond))
        moved = move(adapted)(x, sigma, cond)
        assert (moved - base(x, sigma, cond)).abs().max() > 1e-3
        with deltas.disabled(adapted):
            assert torch.equal(adapted(x, sigma, cond), base(x, sigma, cond))
        deltas.merge(adapted)
        torch.testing.assert_close(adapted(x, sigma, cond), moved, rtol=1e-6, atol=1e-6)


def test_dropout_leaves_the_same_inputs_out_for_a_whole_step():
    torch.manual_seed(0)
    linear = adapt(nn.Sequential(nn.Linear(64, 64)), rank=4, dropout=0.5)
    move(linear)
    x = torch.randn(5, 64)
    whole = linear.eval()(x)
    ((*_, delta),) = deltas.changed(linear)
    delta.draw(torch.Generator().manual_seed(1))
    dropped = linear.train()(x)
    assert torch.equal(linear(x), dropped)
    assert not torch.allclose(dropped, whole)
    assert torch.equal(linear.eval()(x), whole)
    assert set(delta.kept.tolist()) == {0.0, 2.0}
