"""The laws every registered flow obeys, at the start and far from it, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from flow_cases import SMOOTH, label, make_flow, variants

from flowdiff import registry
from flowdiff.conditioning import Conditioning
from flowdiff.errors import ConfigurationError
from flowdiff.nn.embeddings import ConditionEmbedding

EMBED = 8
ALL_CASES = pytest.mark.parametrize("case", variants(), ids=label)
STATES = pytest.mark.parametrize("far", [False, True], ids=["start", "far"])
SHAPES = pytest.mark.parametrize("shape", [(5,), (2, 2, 3)], ids=str)  # an odd vector, an image
CLASSES = pytest.mark.parametrize("cond_dim", [0, 3], ids=["unconditional", "class"])
pytestmark = pytest.mark.filterwarnings("ignore:activation=leakyrelu as a flow layer:UserWarning")


def condition(n: int, cond_dim: int = 3, seed: int = 2) -> Conditioning:
    """The embedding of n noise levels from 0.01 to 50 and, for cond_dim > 0, of n conditions."""
    torch.manual_seed(seed)
    embedding = ConditionEmbedding(EMBED, cond_dim).double()
    c = Conditioning(torch.randn(n, cond_dim, dtype=torch.float64)) if cond_dim else None
    sigma = torch.logspace(-2, math.log10(50), n, dtype=torch.float64)
    with torch.no_grad():
        e = embedding(0.25 * sigma.log(), c).vector
    return Conditioning(e / e.std())  # of order one, as after training


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


@ALL_CASES
@SHAPES
def test_starts_as_the_identity(case, shape):
    x, cond = samples(4, shape), condition(4)
    z, logdet = make_flow(case, shape, EMBED)(x, cond)
    torch.testing.assert_close(z, x, rtol=0, atol=1e-12)  # a product of rotations rounds
    torch.testing.assert_close(logdet, torch.zeros(4, dtype=x.dtype), rtol=0, atol=1e-12)


@ALL_CASES
@SHAPES
def test_far_is_far(case, shape):
    """What the other laws call far is far: in every dimension, in volume, and by what the condition does."""
    flow, x = make_flow(case, shape, EMBED, far=True), samples(16, shape)
    z, logdet = flow(x, condition(16))
    assert ((z - x).abs().flatten(1).mean(0) > 0.3).all()  # x has mean modulus 1.2
    assert logdet.abs().mean() > 0.3
    other, _ = flow(x, condition(16, seed=5))
    assert ((z - other).abs().flatten(1).mean(0) > 0.1).all()


@ALL_CASES
@STATES
@SHAPES
@CLASSES
def test_inverse_and_log_determinants(case, far, shape, cond_dim):
    check_inverse_and_log_determinants(make_flow(case, shape, EMBED, far=far), shape, condition(4, cond_dim))


@ALL_CASES
@pytest.mark.parametrize("activation", registry.names("activation"))
def test_inverse_and_log_determinants_for_every_activation(case, activation):
    check_inverse_and_log_determinants(make_flow(case, (5,), EMBED, activation, far=True), (5,), condition(4))


def check_inverse_and_log_determinants(flow, shape, cond):
    x = samples(4, shape)
    z, logdet = flow(x, cond)
    back, inverse_logdet = flow.inverse(z, cond)
    assert z.shape == back.shape == x.shape
    assert logdet.shape == inverse_logdet.shape == (4,)
    # Exact but for rounding, 1e-16, times the condition of the map and of its Jacobian, below 1e6 here.
    close = {"rtol": 1e-8, "atol": 1e-8}
    torch.testing.assert_close(back, x, **close)
    torch.testing.assert_close(inverse_logdet, -logdet, **close)
    there, _ = flow.inverse(x, cond)  # any point is a z as well
    torch.testing.assert_close(flow(there, cond)[0], x, **close)
    J = jacobians(lambda v: flow(v, cond)[0], x)
    torch.testing.assert_close(logdet, torch.linalg.slogdet(J).logabsdet, **close)
    J = jacobians(lambda v: flow.inverse(v, cond)[0], z.detach())
    torch.testing.assert_close(inverse_logdet, torch.linalg.slogdet(J).logabsdet, **close)


@ALL_CASES
@STATES
def test_density_integrates_to_one(case, far):
    flow = make_flow(case, (2,), EMBED, far=far)
    e = condition(3).vector[1:2]

    def cond(n):
        return Conditioning(e.expand(n, -1))

    with torch.no_grad():
        draws, _ = flow.inverse(samples(20_000, (2,), scale=1.0), cond(20_000))
        low, high = draws.amin(0), draws.amax(0)
        margin = 0.15 * (high - low)
        ends = zip(low - margin, high + margin, strict=True)
        axes = [torch.linspace(a, b, 256, dtype=torch.float64) for a, b in ends]
        grid = torch.cartesian_prod(*axes)
        p = log_density(flow, grid, cond(len(grid))).exp()
        cell = math.prod(float(axis[1] - axis[0]) for axis in axes)
    # Left out beyond the box: of the order of one sample in 20,000. The rule itself is off by far less.
    assert float(p.sum()) * cell == pytest.approx(1.0, abs=5e-4)


@ALL_CASES
@STATES
@pytest.mark.parametrize("activation", registry.names("activation"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_finite_far_out(case, far, activation, dtype):
    """log p and the score are finite for ‖x‖ from 0 to 1e3."""
    flow = make_flow(case, (5,), EMBED, activation, far).to(dtype)
    radius = torch.cat([torch.zeros(2), torch.logspace(0, 3, 10)]).double()
    direction = torch.nn.functional.normalize(samples(12, (5,)), dim=1)
    x = (direction * radius[:, None]).to(dtype).requires_grad_()
    log_p = log_density(flow, x, Conditioning(condition(12).vector.to(dtype)))
    (score,) = torch.autograd.grad(log_p.sum(), x)
    assert log_p.isfinite().all()
    assert score.isfinite().all()


@ALL_CASES
@STATES
@pytest.mark.parametrize("activation", SMOOTH)
def test_first_and_second_derivatives(case, far, activation):
    """Autograd's first and second derivatives of log p in x and in the condition are those of differences."""
    flow, x, e = make_flow(case, (3,), EMBED, activation, far), samples(2, (3,)), condition(2).vector
    inputs = (x.requires_grad_(), e.requires_grad_())

    def function(x, e):
        return log_density(flow, x, Conditioning(e))

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@ALL_CASES
@STATES
@SHAPES
def test_samples_do_not_see_each_other(case, far, shape):
    flow, x, cond = make_flow(case, shape, EMBED, far=far), samples(2, shape), condition(2)
    for direction in (flow.forward, flow.inverse):
        together = direction(x, cond)
        for i in range(2):
            alone = direction(x[i : i + 1], Conditioning(cond.vector[i : i + 1]))
            for whole, part in zip(together, alone, strict=True):
                # Not bitwise: matrix products of other sizes round differently.
                torch.testing.assert_close(whole[i : i + 1], part, rtol=1e-10, atol=1e-10)


@ALL_CASES
def test_state_dict_holds_all_of_it(case):
    """A flow built from another seed becomes the same flow by loading, its random splits included."""
    flow, x, cond = make_flow(case, (6,), EMBED, far=True), samples(4, (6,)), condition(4)
    name, overrides = case
    torch.manual_seed(99)
    runtime = {"shape": (6,), "embed_dim": EMBED, "hidden": 24, **overrides}
    other = registry.build("flow", name, activation=registry.build("activation", "softplus"), **runtime).double()
    other.load_state_dict(flow.state_dict())
    for mine, its in zip(flow(x, cond), other(x, cond), strict=True):
        assert torch.equal(mine, its)


@ALL_CASES
def test_every_parameter_learns(case):
    """Near the start a likelihood step reaches every parameter: nothing hangs loose."""
    flow, x, cond = make_flow(case, (4,), EMBED), samples(8, (4,)), condition(8)
    # A small step away: behind a zero-initialised layer the gradient is zero at the start itself.
    for p in flow.parameters():
        p.data += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(4)).double()
    log_density(flow, x, cond).sum().backward()
    still = [n for n, p in flow.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert still == []


@ALL_CASES
def test_one_dimension_works_or_is_refused(case):
    try:
        flow = make_flow(case, (1,), EMBED, far=True)
    except ConfigurationError:
        with pytest.raises(ConfigurationError, match=r"dimension.*take"):
            make_flow(case, (1,), EMBED)
        return
    x, cond = samples(4, (1,)), condition(4)
    z, logdet = flow(x, cond)
    assert (z - x).abs().max() > 0.1
    torch.testing.assert_close(flow.inverse(z, cond)[0], x, rtol=1e-8, atol=1e-8)
    assert logdet.isfinite().all()
