import copy
import math

import pytest
import torch

from flowdiff.evaluation.denoising import denoising_loss, stratified_sigmas
from flowdiff.models.networks.base import Network
from flowdiff.testing.models import model_of


def loss(model, data, *, seed=0, batch_size=64, num_levels=4):
    return denoising_loss(model, data, seed=seed, batch_size=batch_size, num_levels=num_levels)


@pytest.fixture(scope="module")
def white(points):
    """2-D points from N(0, ½²·I)."""
    data = copy.deepcopy(points)
    data.test.x = 0.5 * torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    return data


def test_the_exact_denoiser_of_white_data_scores_one(white, gaussian):
    # E‖D − x0‖²/dim = σ²σd²/(σ² + σd²) is the inverse of EDM's weight
    mean, error = loss(gaussian(std=0.5), white, num_levels=16)
    assert mean == pytest.approx(1, abs=4 * error)
    assert 0 < error < 0.05


def test_a_denoiser_that_returns_its_input_scores_the_mean_weight_times_variance(white):
    class NoScore(Network):
        def forward(self, x, c_noise, cond=None):
            return torch.zeros_like(x)

    # ‖x − x0‖² = σ²‖noise‖²: the loss is E[(σ² + σd²)/σd²] = 1 + e^{2(−1.2) + 2·1.2²}/σd²
    expected = 1 + math.exp(2 * -1.2 + 2 * 1.2**2) / 0.5**2
    mean, error = loss(model_of(NoScore()), white, num_levels=64)
    # The midpoints of 300 · 64 bins cut about a hundredth off the heavy tail of σ².
    assert mean == pytest.approx(expected, abs=4 * error + 0.02 * expected)


def test_batch_size_changes_nothing_but_seed_and_model_do(digits, gaussian):
    model = gaussian(std=0.7)
    first = loss(model, digits, batch_size=297)
    assert loss(model, digits, batch_size=10) == pytest.approx(first, rel=1e-5)
    assert loss(model, digits, seed=1) != first
    good, worse = (loss(gaussian(mean=mean, std=0.7), digits)[0] for mean in (-0.4, 0.4))
    assert worse > 1.1 * good


def test_the_global_random_state_stays_and_the_model_gets_every_label(tiny, gaussian, labels_as_vectors):
    before = torch.get_rng_state()
    loss(gaussian(conditioner=labels_as_vectors), tiny, batch_size=25, num_levels=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(torch.cat(labels_as_vectors.seen), tiny.test.label)


@pytest.mark.parametrize("num_levels", [1, 4])
def test_sigmas_are_stratified_over_levels_and_samples(num_levels):
    sigmas = stratified_sigmas(50, num_levels, seed=0)
    assert sigmas.shape == (50, num_levels)
    normal = torch.distributions.Normal(-1.2, 1.2)
    u = normal.cdf(sigmas.double().log())
    assert torch.equal((u * num_levels).floor(), torch.arange(num_levels).expand(50, -1).double())
    # σ is float32, so that the bins' midpoints are recovered to about 1e-6
    midpoints = (torch.arange(50 * num_levels) + 0.5) / (50 * num_levels)
    torch.testing.assert_close(u.flatten().sort().values, midpoints.double(), rtol=0, atol=1e-5)
    assert not torch.equal(sigmas[:, 0], sigmas[:, 0].sort().values)
