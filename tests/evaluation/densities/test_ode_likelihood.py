"""The probability-flow ODE's likelihood against closed forms, and against the exact density of a score flow."""

import copy
import math

import pytest
import torch

from flowdiff import registry
from flowdiff.diffusion.denoiser import Denoiser
from flowdiff.evaluation.densities.likelihood import bits_per_dim
from flowdiff.evaluation.densities.ode_likelihood import Solution, ode_bits_per_dim, ode_log_prob
from flowdiff.models.networks.score_flow import ScoreFlow
from flowdiff.noise import generators
from flowdiff.testing.oracles import Gaussian, two_by_two

SIGMA = 0.01
# At σ_max the data weigh σ_data²/σ_max² ≈ 1e-5 in the noise's variance, and their place x/σ_max ≈ 1e-2 of a sample's.
EXACT = Solution(SIGMA, 400.0, 1e-6, 1e-6, None)
BIT = 1e-3  # bits per dimension


class Oracle(torch.nn.Module):
    """A closed form as a denoiser, which is asked for D or, as a density, for log p."""

    def __init__(self, oracle, is_density=False):
        super().__init__()
        self.oracle, self.is_density = oracle, is_density
        self.register_buffer("sigma_data", torch.tensor(0.5))

    def forward(self, x, sigma, cond=None):
        assert not self.is_density
        return self.oracle(x, sigma, cond)

    def log_prob(self, x, sigma, cond=None):
        assert self.is_density
        return self.oracle.log_prob(x, sigma, cond)


CORRELATED = Gaussian(torch.tensor([0.2, -0.1, 0.3]), torch.tensor([[0.3, 0.1, 0], [0.1, 0.2, -0.05], [0, -0.05, 0.1]]))


@pytest.mark.parametrize("oracle", [CORRELATED, two_by_two()], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("is_density", [False, True])
def test_equals_the_closed_form(oracle, is_density):
    n = 60
    sigma = torch.full((n,), SIGMA)
    x = oracle.sample(sigma, generator=generators(0, range(n)))
    exact = oracle.log_prob(x, sigma)
    found = ode_log_prob(Oracle(oracle, is_density), x, EXACT, None, generators(1, range(n)))
    apart = (found - exact) / (x.shape[1] * math.log(2))
    assert apart.mean().abs() < BIT
    assert apart.abs().max() < 3 * BIT  # of a single sample, by σ_max


def test_the_estimated_trace_is_right_on_average():
    n, oracle = 400, two_by_two()
    sigma = torch.full((n,), SIGMA)
    x = oracle.sample(sigma, generator=generators(0, range(n)))
    exact = oracle.log_prob(x, sigma)
    solution = EXACT._replace(rtol=1e-4, atol=1e-4)
    one, four = (
        ode_log_prob(Oracle(oracle), x, solution._replace(probes=k), None, generators(1, range(n))) - exact
        for k in (1, 4)
    )
    assert one.mean().abs() < 4 * one.std() / math.sqrt(n)
    assert four.std() < 0.7 * one.std()


@pytest.fixture
def score_flow(digits):
    """A score flow as it starts: the Gaussian fit of the digits, whose score follows from its density by autograd."""
    torch.manual_seed(0)
    runtime = {"shape": digits.shape, "embed_dim": 8, "activation": registry.create("activation", "softplus")}
    flow = registry.create("flow", "linear_activation", **runtime, n_flows=1)
    whitening = registry.create("whitening", "zca", shape=digits.shape)
    x = digits.to_model(digits.train.x, torch.Generator().manual_seed(0))
    whitening.fit([x])
    denoiser = Denoiser(
        ScoreFlow(flow, whitening, digits.shape, 0, embed_dim=8), registry.create("scaling", "score")
    ).eval()
    denoiser.sigma_data.fill_(x.square().mean().sqrt())
    return denoiser


def test_flow_exact_and_ode_agree_in_bits_on_every_test_image(score_flow, digits):
    few = with_few(digits, 8)
    settings = {"seed": 0, "batch_size": 150}
    solution = Solution(0.05, 80.0, 1e-5, 1e-5, None)
    exact = bits_per_dim(score_flow, few, 0.05, lambda label: None, **settings)
    found = ode_bits_per_dim(score_flow, few, solution, lambda label: None, **settings)
    assert found.mean == pytest.approx(exact.mean, abs=BIT)
    exact = bits_per_dim(score_flow, digits, 0.05, lambda label: None, **settings)
    solution = Solution(0.05, 80.0, 1e-4, 1e-4, 4)
    found = ode_bits_per_dim(score_flow, digits, solution, lambda label: None, **settings)
    assert (found.metric, found.n) == ("bpd", 297) == (exact.metric, exact.n)
    assert found.mean == pytest.approx(exact.mean, abs=2 * BIT)  # the estimate adds about half a BIT
    assert found.standard_error == pytest.approx(exact.standard_error, rel=0.1)
    assert all(p.grad is None for p in score_flow.parameters())


def with_few(data, n):
    """The data with n test samples."""
    fewer = copy.copy(data)
    fewer.test = type(data.test)(data.test.x[:n], data.test.label[:n])
    return fewer


def test_each_sample_has_its_own_signs_whatever_the_batch(points):
    oracle = Oracle(two_by_two())
    few = with_few(points, 12)
    whole, parts = (
        ode_bits_per_dim(oracle, few, Solution(0.05, 80.0, 1e-6, 1e-6, 1), lambda label: None, seed=3, batch_size=b)
        for b in (12, 5)
    )
    assert parts.mean == pytest.approx(whole.mean, abs=1e-4)  # the steps follow the batch


def test_what_is_not_finite_is_nan_and_one_line(caplog):
    class Broken(torch.nn.Module):
        is_density = False
        sigma_data = torch.tensor(0.5)

        def forward(self, x, sigma, cond=None):
            return x * math.nan

    found = ode_log_prob(Broken(), torch.randn(3, 2), EXACT, None, generators(0, range(3)))
    assert found.isnan().all()
    assert "the solver gave up" in caplog.text
