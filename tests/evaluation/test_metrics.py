import copy
import math
import time

import pytest
import torch
from torch.nn import functional

from flowdiff import registry
from flowdiff.conditioning import Conditioning
from flowdiff.errors import ConfigurationError, DataError, InverseDidNotConverge, NotADensity
from flowdiff.evaluation import metrics as module
from flowdiff.evaluation.features import split_batches


def unconditional(label):
    return None


@pytest.fixture
def metrics_of(cache_dir):
    def make(data, **overrides):
        return registry.build("metrics", "default", data=data, cache_dir=str(cache_dir), **overrides)

    return make


@pytest.fixture
def digit_metrics(metrics_of, digits, digits_cnn):
    return metrics_of(digits)


def real(data, split):
    return torch.cat([x for x, _ in split_batches(data, split, 500)])


def test_training_split_itself_scores_zero_and_the_floor_lies_above(digit_metrics, digits):
    # zero up to the root of the rounding error of 64 eigenvalues
    assert digit_metrics.frechet(real(digits, digits.train)) == {"fd_digits_cnn": pytest.approx(0, abs=1e-4)}
    assert digit_metrics.floor == digit_metrics.frechet(real(digits, digits.test))["fd_digits_cnn"] > 0.1
    assert digit_metrics.reference.n == 1500


def test_distance_rises_under_noise(digit_metrics, digits):
    x, generator = real(digits, digits.train), torch.Generator().manual_seed(0)
    noise = torch.randn(x.shape, generator=generator)
    distances = [digit_metrics.frechet(x + s * noise)["fd_digits_cnn"] for s in (0, 0.1, 0.2, 0.4, 0.8, 1.6)]
    assert distances == sorted(distances)
    # noise of a fifth of the grey range is worse than unseen digits
    assert distances[3] > 2 * digit_metrics.floor


def test_distance_rises_under_blur(digit_metrics, digits):
    x, distances = real(digits, digits.train), []
    kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]])[None, None] / 16
    blurred = functional.conv2d(functional.pad(x, (1, 1, 1, 1), mode="replicate"), kernel)
    for strength in (0, 0.25, 0.5, 0.75, 1):
        distances.append(digit_metrics.frechet(x + strength * (blurred - x))["fd_digits_cnn"])
    assert distances == sorted(distances)
    assert distances[-1] > 5 * digit_metrics.floor


def test_distance_sees_a_missing_class(digit_metrics, digits):
    kept = digits.train.label != 3
    assert digit_metrics.frechet(real(digits, digits.train)[kept])["fd_digits_cnn"] > digit_metrics.floor


def test_real_statistics_are_read_from_the_cache(digit_metrics, metrics_of, digits, monkeypatch):
    floor = digit_metrics.floor
    again = metrics_of(digits)
    monkeypatch.setattr(module, "split_batches", lambda *_: pytest.fail("computed again"))
    assert again.floor == floor


def test_table_of_a_density_on_vectors(metrics_of, points, gaussian):
    calls = []

    def sample_fn(n, seed):
        calls.append((n, seed))
        time.sleep(0.01)
        return 0.5 * torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))

    model = gaussian(std=0.5)
    model.inner = torch.nn.Dropout()
    model.train()
    model.inner.eval()
    found = metrics_of(points, repeats=3, num_samples=200).evaluate(model, sample_fn, unconditional, 0.02, 7)
    assert calls == [(200, 7), (200, 8), (200, 9)]
    assert set(found) == {
        *("test_loss", "test_loss_se", "fd_data", "fd_data_sd", "fd_data_floor", "num_samples", "num_test"),
        *("samples_per_second", "nats_per_dim", "nats_per_dim_se"),
        *("interpolation_nats_per_dim", "interpolation_nats_per_dim_se", "interpolation_straight"),
    }
    assert all(isinstance(v, int | float) and math.isfinite(v) for v in found.values())
    assert (found["num_samples"], found["num_test"]) == (200, 300)
    assert found["fd_data_sd"] > 0
    assert 0 < found["samples_per_second"] < 200 / 0.01
    assert model.training
    assert not model.inner.training


def test_table_of_a_raw_network_on_images(metrics_of, digits, digits_cnn, gaussian):
    class Raw(gaussian):
        is_density = False

        def log_prob(self, x, sigma, cond=None):
            raise NotADensity("no density")

    def sample_fn(n, seed):
        return real(digits, digits.train)[:n]

    found = metrics_of(digits, num_samples=60).evaluate(Raw(), sample_fn, unconditional, 0.02, 0)
    # fewer samples than features: a number all the same
    assert math.isfinite(found["fd_digits_cnn"])
    assert found["extractor_accuracy"] == digits_cnn.accuracy
    assert not {"bpd", "nats_per_dim", "fd_digits_cnn_sd", "auroc_permuted", "interpolation_bpd"} & set(found)


@pytest.mark.parametrize(("sigma_eval", "expected"), [(None, 0.03), (0.2, 0.2)])
def test_sigma_of_the_likelihood(metrics_of, points, gaussian, sigma_eval, expected):
    seen = set()

    class Spy(gaussian):
        def log_prob(self, x, sigma, cond=None):
            seen.update(sigma.tolist())
            return super().log_prob(x, sigma, cond)

    metrics_of(points, sigma_eval=sigma_eval, frechet=False).evaluate(Spy(), None, unconditional, 0.03, 0)
    assert list(seen) == [pytest.approx(expected)]


def test_what_is_switched_off_is_not_done(metrics_of, tiny, gaussian):
    unlabelled = copy.copy(tiny)
    unlabelled.num_classes = None
    off = dict.fromkeys(("frechet", "likelihood", "classify", "outliers", "interpolate"), False)
    found = metrics_of(unlabelled, **off).evaluate(gaussian(), None, unconditional, 0.02, 0)
    assert set(found) == {"test_loss", "test_loss_se"}


@pytest.fixture
def conditional(gaussian):
    """A density of the classes of `tiny`, whose images lie around 60 grey levels times their class."""

    class OfClasses(gaussian):
        num_classes = 4

        def log_prob(self, x, sigma, cond=None):
            centre = 2 * (60 * cond.vector + 20) / 256 - 1  # (B,)
            return super().log_prob(x - centre.reshape(-1, 1, 1, 1), sigma)

    return OfClasses(std=0.1)


def as_vector(label):
    return Conditioning(label.float())


def test_table_of_a_class_conditional_density_on_images(metrics_of, tiny, conditional):
    found = metrics_of(tiny, frechet=False).densities(conditional, as_vector, 0.02, 0)
    assert set(found) == {
        *("bpd", "bpd_se", "class_accuracy", "class_accuracy_se", "class_ece", "num_classified", "auroc_permuted"),
        *("interpolation_bpd", "interpolation_bpd_se", "interpolation_straight"),
    }
    assert found["class_accuracy"] == 1  # classes 60 levels apart, of a width of 12
    assert found["class_ece"] < 1e-6
    assert found["num_classified"] == 60
    # The pixels of an image of noise may stand in any order; dequantisation adds other noise to them.
    assert found["auroc_permuted"] == pytest.approx(0.5, abs=0.02)


def test_as_many_are_classified_as_is_cheap_unless_all_are_asked_for(metrics_of, tiny, conditional, monkeypatch):
    monkeypatch.setattr(module, "CHEAP", 100)
    for asked, n in ((None, 25), (True, 60)):
        metrics = metrics_of(tiny, frechet=False, classify=asked, outliers=False, interpolate=False)
        assert metrics.densities(conditional, as_vector, 0.02, 0)["num_classified"] == n


def test_what_a_model_or_its_data_cannot_give_is_refused_when_asked_for(metrics_of, points, tiny, gaussian):
    density, raw = gaussian(), gaussian()
    raw.is_density = False
    for data, model, key, sentence in (
        (tiny, raw, "classify", r"metrics\.classify=true needs a normalised density: take network=score_flow; or set "),
        (
            tiny,
            density,
            "classify",
            r"metrics\.classify=true needs a class-conditional density: take conditioner=class",
        ),
        (points, density, "outliers", r"metrics\.outliers=true needs images"),
        (tiny, raw, "interpolate", r"metrics\.interpolate=true needs a normalised density"),
    ):
        with pytest.raises(ConfigurationError, match=sentence):
            metrics_of(data, **{key: True}).check(model)
        for asked in (None, False):
            metrics = metrics_of(data, **{key: asked})
            metrics.check(model)
            assert not metrics.wants(key, model)


def test_an_inverse_that_does_not_converge_costs_one_line_of_the_table(metrics_of, points, gaussian, caplog):
    class Lost(gaussian):
        def decode(self, z, sigma, cond=None):
            raise InverseDidNotConverge("the inverse is off.")

    found = metrics_of(points).densities(Lost(), unconditional, 0.02, 0)
    assert set(found) == {"nats_per_dim", "nats_per_dim_se"}
    assert "not interpolated: the inverse is off." in caplog.text


def test_images_without_classes_stop_before_anything_is_read(metrics_of, tiny):
    unlabelled = copy.copy(tiny)
    unlabelled.num_classes = unlabelled.train = unlabelled.test = None
    with pytest.raises(ConfigurationError, match=r"set metrics\.frechet=false"):
        metrics_of(unlabelled)


def test_one_sample_is_a_sentence(metrics_of, points):
    with pytest.raises(DataError, match="at least 2 samples"):
        metrics_of(points).frechet(torch.zeros(1, 2))
    with pytest.raises(ConfigurationError, match=r"metrics\.num_samples=1"):
        metrics_of(points, num_samples=1)


def test_home_is_expanded(points):
    metrics = registry.build("metrics", "default", data=points, cache_dir="~/somewhere")
    assert not str(metrics.cache_dir).startswith("~")


def test_samples_of_a_diverged_model_have_a_nan_for_a_distance(metrics_of, points):
    found = metrics_of(points, repeats=2, num_samples=50).quality(lambda n, seed: torch.full((n, 2), math.nan), 0)
    assert math.isnan(found["fd_data"])
    assert math.isnan(found["fd_data_sd"])
