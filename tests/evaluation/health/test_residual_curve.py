"""The residual of the Fokker–Planck equation: zero in closed form, and known for a family with the wrong σ."""

import math

import pytest
import torch
from gaussian_flow import GaussianFlow
from small_models import normal

from flowdiff.diffusion.fokker_planck import signs
from flowdiff.evaluation.health.fokker_planck import mean_square, relative_residual, residual_curve
from flowdiff.testing.models import model_of
from flowdiff.testing.oracles import Gaussian, two_by_two

CORRELATED = Gaussian(torch.tensor([0.2, -0.1, 0.3]), torch.tensor([[0.3, 0.1, 0], [0.1, 0.2, -0.05], [0, -0.05, 0.1]]))


def noised(oracle, sigma, n=20):
    levels = torch.full((n,), sigma, dtype=torch.float64)
    return oracle.sample(levels, generator=torch.Generator().manual_seed(0)), levels


@pytest.mark.parametrize("oracle", [CORRELATED, two_by_two()], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("sigma", [0.01, 0.3, 2.0, 80.0])
def test_zero_for_the_densities_of_one_diffusion(oracle, sigma):
    x, levels = noised(oracle, sigma)
    assert relative_residual(model_of(oracle.network), x, levels, None, None) < 1e-6


class Faster(GaussianFlow):
    """N(0, std² + 2σ²), which is a density at every σ, and not one diffusion: its noise grows as if by √2·σ."""

    def _scale(self, x, sigma):
        return super()._scale(x, math.sqrt(2) * sigma)


@pytest.mark.parametrize("sigma", [0.01, 1.0, 50.0])
@pytest.mark.parametrize("probes", [None, 2])
@pytest.mark.parametrize("dim", [1, 40])
def test_known_for_a_wrong_dependence_on_sigma_whatever_sigma_and_dimension(sigma, probes, dim):
    # V = s² + aσ²: ∂_σ log p = (aσ/V)·(|x|²/V − D) and b = (σ/V)·(|x|²/V − D), so r = |a − 1|/√(a² + 1), a = 2.
    x, levels = normal((30, dim))[0] * (0.5 + sigma), torch.full((30,), sigma, dtype=torch.float64)
    vectors = None if probes is None else signs(x, torch.Generator().manual_seed(1), probes)  # exact: H is diagonal
    found = relative_residual(model_of(Faster(std=0.5)), x, levels, None, vectors)
    assert found == pytest.approx(1 / math.sqrt(5), rel=1e-6)


def test_probes_add_no_bias():
    # In the plane H has an entry off the diagonal, which the estimates of Δ log p see with random sign.
    x, levels = noised(two_by_two(), 0.3, n=20_000)
    vectors = signs(x, torch.Generator().manual_seed(1), 2)
    model = model_of(two_by_two().network)
    estimated = relative_residual(model, x, levels, None, vectors)
    squared = relative_residual(model, x, levels, None, vectors[:1])  # the mean of squares of one estimate
    assert estimated < 0.2 * squared


def test_the_mean_square_of_pairs_is_that_of_what_they_estimate():
    exact, noise = normal((4000,), (3, 4000))
    assert mean_square(exact[None]) == exact.square().mean()
    # Its standard error is about √(8·mean(exact²)/3/n) = 0.026 with noise of size 1.
    assert float(mean_square(exact + noise)) == pytest.approx(float(exact.square().mean()), abs=0.1)


def test_the_curve_uses_test_samples_and_has_no_number_where_it_is_not_finite(points):
    class Lost(GaussianFlow):
        def log_prob(self, x, sigma, cond=None):
            return super().log_prob(x, sigma) * torch.where(sigma > 1, math.nan, 1.0)

    model = model_of(Lost(std=0.5))
    curve = residual_curve(model, points, [0.1, 0.5, 2.0])
    assert curve.value[:2] == pytest.approx([0, 0], abs=1e-3)  # in float32
    assert math.isnan(curve.value[2])
    assert curve.mean().reason == "it is not finite at σ = 2"
