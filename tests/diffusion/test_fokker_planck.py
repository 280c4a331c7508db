"""The residual of the Fokker–Planck equation: zero for one diffusion, right for a family that is none, in any flow."""

import math

import pytest
import torch
from flow_cases import every_flow, make_flow
from small_models import score_flow_of

from flowdiff.diffusion.fokker_planck import residual, residuals, signs
from flowdiff.models.conditioning import Conditioning
from flowdiff.testing.oracles import Gaussian, two_by_two

SIGMA = torch.logspace(-2, 2, 9, dtype=torch.float64)
COVARIANCE = torch.tensor([[1.0, 0.3, -0.2], [0.3, 0.5, 0.1], [-0.2, 0.1, 0.3]], dtype=torch.float64)
GAUSSIAN = Gaussian(torch.tensor([0.5, -0.2, 0.1]), COVARIANCE)
PROBES = 1000


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian_of(variance):
    """log N(x; 0, variance(σ)·I), which is no diffusion unless variance(σ) = const + σ²."""

    def log_prob(x, sigma, cond=None):
        v = variance(sigma)[:, None]
        return (-0.5 * x**2 / v - 0.5 * (2 * math.pi * v).log()).sum(1)

    return log_prob


def wrong(sigma):
    return (1 + sigma) ** 2


def per_dimension(found, x, sigma):
    return sigma * found / x[0].numel()


@pytest.mark.parametrize("oracle", [GAUSSIAN, two_by_two()], ids=lambda oracle: type(oracle).__name__)
def test_it_vanishes_for_data_that_are_noised(oracle):
    """The terms of σR/D are of order one, and 1e-8 is far above their rounding errors and far below themselves."""
    x = oracle.sample(SIGMA, generator=seeded())
    with torch.no_grad():
        found = per_dimension(residual(oracle.log_prob, x, SIGMA), x, SIGMA)
    assert found.dtype == torch.float64
    assert not found.requires_grad
    assert float(found.abs().max()) < 1e-8


def test_it_vanishes_under_every_condition():
    oracle = two_by_two()
    cond = oracle.classes(torch.arange(9) % 4)
    cond = Conditioning(0.9 * cond.vector + 0.025)  # no weight is 0, whose logarithm is infinite
    x = oracle.sample(SIGMA, cond, seeded())
    assert float(per_dimension(residual(oracle.log_prob, x, SIGMA, cond), x, SIGMA).abs().max()) < 1e-8


def test_it_has_its_value_for_a_family_that_is_no_diffusion():
    """For N(0, v(σ)·I) it is (x²/v − D)·(v′/2v − σ/v): zero for v′ = 2σ only."""
    x = torch.randn(9, 3, generator=seeded(), dtype=torch.float64) * (1 + SIGMA[:, None])
    v = wrong(SIGMA)
    expected = ((x**2).sum(1) / v - 3) / v  # v′/2v − σ/v = (1 + σ − σ)/v
    torch.testing.assert_close(residual(gaussian_of(wrong), x, SIGMA), expected)
    assert float(per_dimension(expected, x, SIGMA).abs().max()) > 0.1


def test_the_estimate_by_random_signs_has_no_bias():
    oracle = two_by_two()
    x = oracle.sample(SIGMA, generator=seeded())
    found = SIGMA * residuals(oracle.log_prob, x, SIGMA, probes=signs(x, seeded(1), PROBES))
    error = found.std(0) / PROBES**0.5
    assert (found.mean(0).abs() < 5 * error + 1e-9).all()
    assert float(found.std(0).max()) > 0.1  # it is an estimate: the Hessian of a mixture is not diagonal
    mean = SIGMA * residual(oracle.log_prob, x, SIGMA, probes=signs(x, seeded(1), PROBES))
    torch.testing.assert_close(mean, found.mean(0))


def test_products_of_two_estimates_have_the_mean_of_the_square_and_squares_do_not():
    oracle = two_by_two()
    x = oracle.sample(SIGMA, generator=seeded())

    def log_prob(x, sigma, cond=None):
        return oracle.log_prob(x, sigma**1.5, cond)

    right = (SIGMA * residual(log_prob, x, SIGMA)) ** 2
    found = SIGMA * residuals(log_prob, x, SIGMA, probes=signs(x, seeded(1), 2 * PROBES))
    products = found[::2] * found[1::2]
    error = products.std(0) / PROBES**0.5
    assert ((products.mean(0) - right).abs() < 5 * error + 1e-9).all()
    square, of_square = (found**2).mean(0), (found**2).std(0) / (2 * PROBES) ** 0.5
    assert ((square - right) > 10 * of_square).any()


def test_signs_belong_to_samples():
    x = torch.zeros(3, 2, 4, dtype=torch.float64)
    one = signs(x, seeded(), probes=2)
    assert one.shape == (2, 3, 2, 4)
    assert one.dtype == x.dtype
    assert one.abs().eq(1).all()
    assert torch.equal(one, signs(x, seeded(), probes=2))
    own = signs(x, [seeded(i) for i in range(3)], probes=2)
    assert torch.equal(own[:, 1:], signs(x[1:], [seeded(i) for i in (1, 2)], probes=2))


def is_smooth(flow):
    return flow.smooth and flow.twice_differentiable


def network_of(case, shape):
    """A score flow far from its start, in float64."""
    return score_flow_of(make_flow(case, shape, 8, far=True), shape).double().eval()


def numbers(shape):
    x = torch.randn(2, *shape, generator=seeded(), dtype=torch.float64)
    return x, torch.tensor([0.3, 1.5], dtype=torch.float64)


@every_flow((3,), (1, 2, 2), having=is_smooth)
def test_of_every_smooth_flow_it_is_that_of_finite_differences(case, shape):
    network, (x, sigma) = network_of(case, shape), numbers(shape)
    h = 1e-4  # the second difference has an error of h²·O(1) = 1e-8 and a rounding error of 1e-16/h² = 1e-8
    steps = h * torch.eye(x[0].numel(), dtype=torch.float64).view(-1, 1, *shape)

    def moved(by, level=sigma):
        return network.log_prob(x + by, level)

    with torch.no_grad():
        slope = (moved(0, sigma + h) - moved(0, sigma - h)) / (2 * h)
        laplacian = sum(moved(v) + moved(-v) - 2 * moved(0) for v in steps) / h**2
        square = sum(((moved(v) - moved(-v)) / (2 * h)) ** 2 for v in steps)
    expected = slope - sigma * (laplacian + square)
    torch.testing.assert_close(residual(network.log_prob, x, sigma), expected, rtol=1e-5, atol=1e-5)


@every_flow((3,), (1, 2, 2), having=is_smooth)
def test_of_every_smooth_flow_its_gradient_is_that_of_finite_differences(case, shape):
    """Along one random direction through all parameters, of the loss's own product of two estimates."""
    network, (x, sigma) = network_of(case, shape), numbers(shape)
    probes = signs(x, seeded(1), 2)
    parameters = [p for p in network.parameters() if p.requires_grad]
    direction = [torch.randn(p.shape, generator=seeded(2), dtype=p.dtype) for p in parameters]

    def loss(differentiable=False):
        pair = sigma * residuals(network.log_prob, x, sigma, probes=probes, differentiable=differentiable)
        return pair.prod(0).sum()

    gradient = torch.autograd.grad(loss(differentiable=True), parameters, allow_unused=True)
    found = sum(float((g * d).sum()) for g, d in zip(gradient, direction, strict=True) if g is not None)
    h, values = 1e-5, []
    for side in (1, -1):
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(side * h * d)
        values.append(float(loss()))
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.sub_(side * h * d)
    expected = (values[0] - values[1]) / (2 * h)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert abs(found) > 1e-4
