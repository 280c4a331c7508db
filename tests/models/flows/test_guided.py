"""Guidance inside a flow's sampling: the product of two Gaussians, number by number, from the guided past."""

import pytest
import torch
from flow_cases import every_flow, make_flow
from small_models import normal, score_flow_of
from torch.autograd.functional import jacobian

from flowdiff import registry
from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.flows.guided import guided_affine
from flowdiff.noise import generators
from flowdiff.testing.inputs import perturb
from flowdiff.testing.models import model_of

EMBED = 3
SHAPES = ((6,), (1, 4, 4))


def tensor(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize("weight", [-0.5, 0.0, 0.3, 2.0, 10.0])
@pytest.mark.parametrize(("mean", "scale", "null_mean", "null_scale"), [(0.4, 0.3, -0.5, 0.8), (1.0, 0.7, 0.2, 0.7)])
def test_it_is_the_product_of_two_gaussians(mean, scale, null_mean, null_scale, weight):
    """Mean and deviation of p_c^{1+w}/p_∅^w by summation on a grid, which is exact to rounding for Gaussians."""
    x = torch.linspace(-30, 30, 200_001, dtype=torch.float64)
    log_product = -(1 + weight) * ((x - mean) / scale) ** 2 / 2 + weight * ((x - null_mean) / null_scale) ** 2 / 2
    p = log_product.softmax(0)
    expected = (p * x).sum(), (p * x**2).sum() - (p * x).sum() ** 2
    found, log_scale = guided_affine(
        tensor(mean), tensor(scale).log(), tensor(null_mean), tensor(null_scale).log(), weight
    )
    torch.testing.assert_close((found, (2 * log_scale).exp()), expected, rtol=1e-9, atol=1e-9)


def test_where_the_product_is_no_density_the_scale_stays_that_of_the_condition():
    """For σ_c > σ_∅ STARFlow's formula has s = 1."""
    found = guided_affine(tensor(1.0), tensor(0.5), tensor(0.2), tensor(-0.5), 3.0)
    torch.testing.assert_close(found, (tensor(1.0 + 3 * 0.8), tensor(0.5)))
    means, scales = normal((1000,), (1000,), seed=0), normal((1000,), (1000,), seed=1)
    _, log_scale = guided_affine(means[0], scales[0], means[1], scales[1], 5.0)
    assert (log_scale <= scales[0]).all()


def guidable(flow):
    return bool(flow.guidance_orders)


def guided(flow, z, cond, null, first, last):
    """x (B, …) from z (B, …) with weights from `first` to `last`."""
    pairs, ends = Conditioning.cat([cond, null]), torch.tensor([first, last], dtype=z.dtype).expand(2 * len(z), 2)
    with torch.no_grad():
        both, _ = flow.inverse(torch.cat([z, z]), Conditioning(pairs.vector, pairs.tokens, pairs.mask, ends))
    one, other = both.chunk(2)
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    return one


def tolerance(case):
    """Rounding; the unguided inverse by Jacobi's iteration stops at its own tolerance, and the guided one is exact."""
    error = 1e-3 if case[1].get("inverse") == "jacobi" else 1e-9
    return {"rtol": error, "atol": error}


def setting(case, shape):
    """The flow, far from the identity, with base points and two conditions, which also have tokens."""
    z, e, null, tokens = normal((4, *shape), (4, EMBED), (4, EMBED), (8, 2, 4), seed=2)
    flow = make_flow(case, shape, EMBED, far=True, token_dim=4)
    return flow, z, Conditioning(e, tokens[:4]), Conditioning(null, tokens[4:])


@every_flow(*SHAPES, max_shapes=2, having=guidable)
def test_without_weight_and_between_equal_conditions_nothing_changes(case, shape):
    flow, z, cond, null = setting(case, shape)
    with torch.no_grad():
        expected, _ = flow.inverse(z, cond)
    for order in flow.guidance_orders:
        first = 0.0 if order == "token" else 3.0
        torch.testing.assert_close(guided(flow, z, cond, cond, first, 3.0), expected, **tolerance(case))
        assert not torch.allclose(guided(flow, z, cond, null, first, 3.0), expected, atol=1e-2)
    torch.testing.assert_close(guided(flow, z, cond, null, 0.0, 0.0), expected, **tolerance(case))


# One autoregressive or coupling map next to the base: (flow, settings, the token of each number, number of tokens).
SINGLE = [
    ("tarflow", {"n_flows": 1, "patch": 2}, [0, 0, 1, 1, 2, 2], 3),
    ("maf", {"n_flows": 1}, [0, 1, 2, 3, 4, 5], 6),
    ("maf", {"n_flows": 1, "passes": 3}, [0, 0, 1, 1, 2, 2], 3),
    ("realnvp", {"n_flows": 1}, None, None),
]


@pytest.mark.parametrize(("name", "settings", "token", "count"), SINGLE)
def test_each_number_is_drawn_from_the_product_given_the_guided_past(name, settings, token, count):
    """x_i = μ + σ·z_i, and μ_c, σ_c, μ_∅, σ_∅ from the Jacobian of the flow, z_i = (x_i − μ(past))/σ(past), at x."""
    flow, z, cond, null = setting((name, settings), (6,))
    for order in flow.guidance_orders:
        last = 1.5
        w = torch.full((6,), last, dtype=torch.float64)
        if order == "token":
            w = last * torch.tensor(token, dtype=torch.float64) / (count - 1)
        x = guided(flow, z, cond, null, 0.0 if order == "token" else last, last)
        maps = []
        for given in (cond, null):
            slope = torch.stack(
                [
                    jacobian(lambda u, i=i, given=given: flow(u[None], given[torch.tensor([i])])[0][0], x[i]).diagonal()
                    for i in range(len(x))
                ]
            )
            with torch.no_grad():
                maps += [x - flow(x, given)[0] / slope, -slope.log()]
        mean, log_scale = guided_affine(*maps, w)
        torch.testing.assert_close(x, mean + log_scale.exp() * z, rtol=1e-8, atol=1e-8)


@every_flow(*SHAPES, having=guidable)
def test_a_score_flow_is_guided_from_the_noise_of_its_own_samples(case, shape):
    flow, _, cond, null = setting(case, shape)
    network = score_flow_of(flow, shape, embed_dim=EMBED, cond_dim=EMBED, token_dim=4).double()
    perturb(network.embedding, 0.5)
    sigma, sources = torch.full((4,), 0.7, dtype=torch.float64), lambda: generators(0, range(4))
    own = network.sample(sigma, cond, sources())
    assert network.guidance_orders == flow.guidance_orders
    same = network.sample_guided(sigma, cond, cond, 4.0, "all", sources())
    torch.testing.assert_close(same, own, **tolerance(case))
    assert not torch.allclose(network.sample_guided(sigma, cond, null, 4.0, "all", sources()), own, atol=1e-2)


@pytest.mark.parametrize(
    ("name", "order", "sentence"),
    [
        ("linear_activation", "all", r"guidance\.flow_scale=2 .* cannot be guided there: take a flow of affine maps"),
        ("spline", "all", "cannot be guided there"),
        ("nsf", "token", "cannot be guided there"),
        ("realnvp", "token", r"this flow has no tokens: set guidance\.order=all"),
        ("maf", "token", None),
    ],
)
def test_flows_that_cannot_be_guided_refuse(name, order, sentence):
    network = score_flow_of(make_flow((name, {}), (6,), EMBED, token_dim=0).float(), (6,), embed_dim=EMBED)
    runtime = {"denoiser": model_of(network, shape=(6,)), "null": lambda n: Conditioning(torch.zeros(n, EMBED))}
    if sentence is None:
        assert registry.create("guidance", "cfg", **runtime, flow_scale=2.0, order=order).start is not None
        return
    with pytest.raises(ConfigurationError, match=sentence):
        registry.create("guidance", "cfg", **runtime, flow_scale=2.0, order=order)
    assert registry.create("guidance", "cfg", **runtime).start is None  # flow_scale=1 is for every network
