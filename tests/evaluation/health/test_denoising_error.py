"""The error of D over σ, against what is known: the Gaussian's own denoiser, the means, and errors made on purpose."""

import math

import pytest
import torch
from gaussian_flow import LabelsAsVectors

from flowdiff.evaluation.health.denoising_error import denoising_errors, sigmas_of, statistics
from flowdiff.models.networks.base import Network
from flowdiff.runs.health import WORSE
from flowdiff.shapes import append_dims
from flowdiff.testing.models import ScoreOf, model_of
from flowdiff.testing.oracles import Gaussian

LEVELS = 7


def errors_of(model, data, samples=1000, batch_size=100, visited=(80.0,)):
    return denoising_errors(model, data, levels=LEVELS, samples=samples, batch_size=batch_size, visited=visited)


class Off(Network):
    """The score whose D is x0's `value` plus `slope`·σ."""

    def __init__(self, value=0.0, slope=0.0):
        super().__init__()
        self.value, self.slope = value, slope

    def forward(self, x, c_noise, cond=None):
        sigma = append_dims(c_noise, x.ndim)
        value = self.value if cond is None else append_dims(cond.vector[:, 0], x.ndim)
        return (value + self.slope * sigma - x) / sigma**2


@pytest.mark.parametrize("as_density", [True, False])
def test_the_denoiser_of_the_gaussian_fit_has_the_error_of_the_wiener_filter(points, as_density):
    fit = statistics(points, None, 100).gaussian
    density = Gaussian(fit.mean, fit.basis @ torch.diag(fit.eigenvalues) @ fit.basis.T).network
    errors = errors_of(model_of(density if as_density else ScoreOf(density)), points)
    # D is computed in float32, x + σ²·score: at σ = 80 its rounding error is 80²·(x/σ²)·1e-7 = 1e-5 of D.
    assert errors.model == pytest.approx(errors.wiener, rel=1e-4)
    assert (errors.sigma[0], errors.sigma[-1], len(errors.sigma)) == (0.002, 80.0, LEVELS)
    ratios = [b / a for a, b in zip(errors.sigma, errors.sigma[1:], strict=False)]
    assert ratios == pytest.approx([ratios[0]] * (LEVELS - 1))


def test_the_statistics_are_those_of_the_training_split(points):
    known = statistics(points, None, 77)
    x = points.train.x.double()
    torch.testing.assert_close(known.means, x.mean(0, keepdim=True))
    covariance = known.gaussian.basis @ torch.diag(known.gaussian.eigenvalues) @ known.gaussian.basis.T
    torch.testing.assert_close(covariance, torch.cov(x.T, correction=0))
    assert known.variance == pytest.approx(float(covariance.diagonal().mean()))


def test_the_wiener_filter_has_its_expected_error_at_small_and_at_large_noise(points):
    errors = errors_of(model_of(Off()), points)
    # D is about x at σ = 0.002, whose error σ² is a mean of 600 squares of normal numbers: 4 standard errors.
    assert errors.wiener[0] == pytest.approx(0.002**2, rel=4 * math.sqrt(2 / 600))
    assert errors.wiener[-1] == pytest.approx(errors.means, rel=1e-3)  # of the data's mean
    assert errors.means == pytest.approx(errors.variance, rel=0.3)  # of 300 other points


def test_class_means_are_those_of_the_training_split_for_a_model_that_knows_the_classes(tiny):
    known, unknown = (
        errors_of(model_of(Off(), conditioner=c, shape=tiny.shape), tiny) for c in (LabelsAsVectors(), None)
    )
    means = statistics(tiny, 4, 50).means
    x, label = tiny.centre(tiny.test.x).flatten(1).double(), tiny.test.label
    # The samples are dequantised, by up to half a level of 2/256, which adds a variance of (2/256)²/12 = 5e-6.
    assert known.of_classes
    assert known.means == pytest.approx(float((means[label] - x).square().mean()), abs=2e-5)
    assert not unknown.of_classes
    assert unknown.means > 10 * known.means  # the classes of `tiny` are far apart
    assert unknown.wiener == known.wiener


def test_the_error_is_that_of_the_model_with_its_own_condition_and_tells_how_often_it_is_worse(tiny):
    model = model_of(Off(slope=0.5), conditioner=LabelsAsVectors(), shape=tiny.shape)
    errors = errors_of(model, tiny, visited=[80.0, 2.0, 0.002])
    x, label = tiny.centre(tiny.test.x).double(), append_dims(tiny.test.label, 4)
    expected = [float((label + 0.5 * sigma - x).square().mean()) for sigma in errors.sigma]
    assert errors.model == pytest.approx(expected, rel=1e-3)
    assert errors.visited == (True, False, False, False, True, False, True)  # 2 is nearest to 2.34
    numbers = errors.numbers()
    assert numbers["denoising_worst"] == errors.model[-1]
    assert numbers["denoising_worst_sigma"] == 80
    assert numbers["denoising_worst_ratio"] == pytest.approx(errors.model[-1] / errors.means)
    assert numbers["class_means_error"] == errors.means
    worse = sum(e > WORSE * errors.means and seen for e, seen in zip(errors.model, errors.visited, strict=True))
    assert (numbers["levels_worse_than_means"], numbers["levels_visited"]) == (worse, 3)


def test_the_curve_does_not_depend_on_the_batch_size_and_uses_at_most_so_many_samples(points, monkeypatch):
    seen = []

    class Counting(Off):
        def forward(self, x, c_noise, cond=None):
            seen.append(len(x))
            return super().forward(x, c_noise, cond)

    one, other = (errors_of(model_of(Counting()), points, samples=50, batch_size=size) for size in (50, 7))
    assert one.model == pytest.approx(other.model, rel=1e-6)
    assert one.wiener == pytest.approx(other.wiener, rel=1e-9)
    assert sum(seen) == 2 * 50 * LEVELS


def test_levels_of_a_model_of_discrete_levels_are_its_own(points):
    model = model_of(Off())

    class Discrete:
        def nearest(self, sigma):
            return torch.where(sigma < 1, 0.5, 50.0)

    object.__setattr__(model.sampling, "trained_levels", Discrete())
    assert sigmas_of(model, LEVELS) == [0.5, 50.0]
    assert len(errors_of(model, points).model) == 2


def test_the_covariance_of_too_many_dimensions_is_left_out(points, monkeypatch):
    from flowdiff.evaluation.health import denoising_error

    monkeypatch.setattr(denoising_error, "LARGEST_DIM", 1)
    errors = errors_of(model_of(Off()), points)
    assert errors.wiener is None
    assert errors.variance == pytest.approx(float(points.train.x.double().var(0, correction=0).mean()))


def test_a_denoiser_that_is_not_finite_has_no_number_but_a_reason(points):
    errors = errors_of(model_of(Off(value=math.inf)), points)
    worst = errors.numbers()["denoising_worst"]
    assert math.isnan(worst)
    assert worst.reason == "D is not finite at σ = 80"
