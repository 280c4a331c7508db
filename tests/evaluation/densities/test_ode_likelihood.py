"""The probability-flow ODE's likelihood against closed forms, and against the exact density of a score flow."""

import copy
import math

import pytest
import torch
from small_models import flow_of, score_flow_of

from flowdiff.evaluation.densities.likelihood import bits_per_dim
from flowdiff.evaluation.densities.ode_likelihood import Solution, ode_bits_per_dim, ode_log_prob
from flowdiff.models.networks.base import Network
from flowdiff.noise import generators
from flowdiff.testing.models import ScoreOf, model_of
from flowdiff.testing.oracles import Gaussian, two_by_two

SIGMA = 0.01
# At σ_max the data add σ_data²/σ_max² ≈ 1e-6 to the variance of the noise, and their mean shifts it by x/σ_max ≈ 1e-3.
EXACT = Solution(SIGMA, 400.0, 1e-6, 1e-6, None)
BIT = 1e-3  # bits per dimension


def raw(oracle):
    """The denoiser of an oracle, without its density."""
    return model_of(ScoreOf(oracle.network))


CORRELATED = Gaussian(torch.tensor([0.2, -0.1, 0.3]), torch.tensor([[0.3, 0.1, 0], [0.1, 0.2, -0.05], [0, -0.05, 0.1]]))


@pytest.mark.parametrize("oracle", [CORRELATED, two_by_two()], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("as_density", [False, True])
def test_equals_the_closed_form(oracle, as_density):
    n = 60
    sigma = torch.full((n,), SIGMA)
    x = oracle.sample(sigma, generator=generators(0, range(n)))
    exact = oracle.log_prob(x, sigma)
    model = model_of(oracle.network) if as_density else raw(oracle)
    found = ode_log_prob(model, x, EXACT, None, generators(1, range(n)))
    apart = (found - exact) / (x.shape[1] * math.log(2))
    assert apart.mean().abs() < BIT
    assert apart.abs().max() < 3 * BIT  # of a single sample, because of the finite σ_max


def test_the_estimated_trace_is_right_on_average():
    n, oracle = 400, two_by_two()
    sigma = torch.full((n,), SIGMA)
    x = oracle.sample(sigma, generator=generators(0, range(n)))
    exact = oracle.log_prob(x, sigma)
    solution = EXACT._replace(rtol=1e-4, atol=1e-4)
    one, four = (
        ode_log_prob(raw(oracle), x, solution._replace(probes=k), None, generators(1, range(n))) - exact for k in (1, 4)
    )
    assert one.mean().abs() < 4 * one.std() / math.sqrt(n)
    assert four.std() < 0.7 * one.std()


@pytest.fixture
def score_flow(digits):
    """An untrained score flow: the Gaussian fit of the digits, whose score autograd derives from its density."""
    flow = flow_of("linear_activation", digits.shape, 8, act="softplus", n_flows=1)
    network = score_flow_of(flow, digits.shape, "zca")
    x = digits.to_model(digits.train.x, torch.Generator().manual_seed(0))
    network.whitening.fit([x])
    return model_of(network, sigma_data=x.square().mean().sqrt().item())


@pytest.mark.parametrize(
    ("n", "tolerance", "probes", "apart"),
    # The estimate adds about half a BIT.
    [(8, 1e-5, None, BIT), (297, 1e-4, 4, 2 * BIT)],
)
def test_flow_exact_and_ode_agree_in_bits_on_test_images(n, tolerance, probes, apart, score_flow, digits):
    data, settings = with_few(digits, n), {"seed": 0, "batch_size": 150}
    exact = bits_per_dim(score_flow, data, 0.05, **settings)
    found = ode_bits_per_dim(score_flow, data, Solution(0.05, 80.0, tolerance, tolerance, probes), **settings)
    assert found.mean == pytest.approx(exact.mean, abs=apart)
    assert (found.metric, found.n) == ("bpd", n) == (exact.metric, exact.n)
    assert found.standard_error == pytest.approx(exact.standard_error, rel=0.1)
    assert all(p.grad is None for p in score_flow.parameters())


def with_few(data, n):
    """The data with n test samples."""
    fewer = copy.copy(data)
    fewer.test = type(data.test)(data.test.x[:n], data.test.label[:n])
    return fewer


def test_each_sample_has_its_own_signs_in_any_batch(points):
    oracle = raw(two_by_two())
    few = with_few(points, 12)
    whole, parts = (
        ode_bits_per_dim(oracle, few, Solution(0.05, 80.0, 1e-6, 1e-6, 1), seed=3, batch_size=b) for b in (12, 5)
    )
    assert parts.mean == pytest.approx(whole.mean, abs=1e-4)  # the solver's steps depend on the batch


def test_a_denoiser_that_is_not_finite_gives_nan_and_one_warning(caplog):
    class Broken(Network):
        def forward(self, x, c_noise, cond=None):
            return x * math.nan

    found = ode_log_prob(model_of(Broken()), torch.randn(3, 2), EXACT, None, generators(0, range(3)))
    assert found.isnan().all()
    assert "the solver gave up" in caplog.text
