import copy
import math
import time
from dataclasses import replace

import pytest
import torch
from gaussian_flow import GaussianFlow
from torch.nn import functional

from flowdiff import config, registry
from flowdiff.data.readers import evenly, split_batches
from flowdiff.errors import ConfigurationError, DataError, InverseDidNotConverge
from flowdiff.evaluation.densities import densities as module
from flowdiff.evaluation.features import samples
from flowdiff.evaluation.features import small_cnn as features
from flowdiff.evaluation.features.identity import IdentityFeatures

ODE = config.defaults("metrics", "default")["ode"]
COMPARED = ("precision", "recall", "memorised", "train_distance")  # by default, beside the Fréchet distance


@pytest.fixture
def metrics_of(cache_dir):
    def make(data, **overrides):
        return registry.create("metrics", "default", data=data, **{"cache_dir": str(cache_dir), **overrides})

    return make


@pytest.fixture
def digit_metrics(metrics_of, digits, digits_cnn):
    return metrics_of(digits)


def real(data, split):
    return torch.cat([x for x, _ in split_batches(data, split, 500)])


def test_training_split_itself_scores_zero_and_the_floor_lies_above(digit_metrics, digits):
    # Zero up to the root of the rounding error of 64 eigenvalues.
    assert digit_metrics.frechet(real(digits, digits.train)) == {"fd_digits_cnn": pytest.approx(0, abs=1e-4)}
    # In batches of another size the same features are summed in another order.
    assert digit_metrics.floor("frechet") == pytest.approx(digit_metrics.frechet(real(digits, digits.test)), rel=1e-6)
    assert digit_metrics.floor("frechet")["fd_digits_cnn"] > 0.1
    assert digit_metrics.train.statistics.n == 1500


def test_distance_rises_under_noise_and_blur_and_with_every_class_that_is_dropped(digit_metrics, digits):
    x, floor = real(digits, digits.train), digit_metrics.floor("frechet")["fd_digits_cnn"]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]])[None, None] / 16
    blurred = functional.conv2d(functional.pad(x, (1, 1, 1, 1), mode="replicate"), kernel)
    noised, blurs, dropped = (
        [digit_metrics.frechet(changed)["fd_digits_cnn"] for changed in series]
        for series in (
            [x + s * noise for s in (0, 0.1, 0.2, 0.4, 0.8, 1.6)],
            [x + strength * (blurred - x) for strength in (0, 0.25, 0.5, 0.75, 1)],
            [x[digits.train.label >= k] for k in range(9)],
        )
    )
    for distances in (noised, blurs, dropped):
        assert distances == sorted(distances)
    assert noised[3] > 2 * floor  # noise of a fifth of the grey range is worse than unseen digits
    assert blurs[-1] > 5 * floor
    assert dropped[1] > floor


def test_features_and_floors_of_real_data_are_read_from_the_cache(digit_metrics, metrics_of, digits, monkeypatch):
    floors = {name: digit_metrics.floor(name) for name in digit_metrics.comparisons}
    again = metrics_of(digits)
    monkeypatch.setattr(samples, "split_batches", lambda *_: pytest.fail("computed again"))
    assert {name: again.floor(name) for name in again.comparisons} == floors
    assert again.train.statistics.n == 1500


def test_another_cache_file_for_other_data_settings_weights_and_preprocessing(tiny, tmp_path, metrics_of, monkeypatch):
    monkeypatch.setitem(features.TRAINING, "steps", 1)
    other = copy.deepcopy(tiny)
    other.test.x[7, 0, 3, 3] ^= 1

    def files(data=tiny, **overrides):
        metrics_of(data, cache_dir=str(tmp_path), **overrides).floor("memorisation")
        return len(list((tmp_path / "floors").iterdir()))

    assert [files(), files(), files(other)] == [1, 1, 2]
    assert files(compare={"memorisation": {"quantile": 0.02, "num_samples": 1000}}) == 3
    monkeypatch.setitem(features.TRAINING, "seed", 1)
    assert files() == 4
    monkeypatch.setattr(features.SmallCNN, "preprocessing", "another")
    assert files() == 5


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
    found = metrics_of(points, repeats=3, num_samples=200).evaluate(model, sample_fn, 7)
    assert calls == [(200, 7), (200, 8), (200, 9)]
    assert set(found) == {
        *("test_loss", "test_loss_se", "num_samples", "num_test"),
        *(f"{name}{part}" for name in ("fd_data", *COMPARED) for part in ("", "_sd", "_floor")),
        *("samples_per_second", "nats_per_dim", "nats_per_dim_se"),
        *("interpolation_nats_per_dim", "interpolation_nats_per_dim_se", "interpolation_straight"),
    }
    assert all(isinstance(v, int | float) and math.isfinite(v) for v in found.values())
    assert (found["num_samples"], found["num_test"]) == (200, 300)
    assert found["fd_data_sd"] > 0
    assert 0 < found["samples_per_second"] < 200 / 0.01
    assert model.training
    assert not model.inner.training


def test_table_of_a_raw_network_on_images(metrics_of, digits, digits_cnn, raw):
    found = metrics_of(digits, num_samples=60).evaluate(raw(), lambda n, seed: real(digits, digits.train)[:n], 0)
    # There are fewer samples than features, which still gives a number.
    assert math.isfinite(found["fd_digits_cnn"])
    assert found["extractor_accuracy"] == digits_cnn.accuracy
    assert not {"bpd", "nats_per_dim", "fd_digits_cnn_sd", "auroc_permuted", "interpolation_bpd"} & set(found)


@pytest.mark.parametrize(("sigma_eval", "expected"), [("auto", 0.03), (0.2, 0.2)])
def test_sigma_of_the_likelihood(metrics_of, points, gaussian, sigma_eval, expected):
    seen = set()

    class Spy(GaussianFlow):
        def log_prob(self, x, sigma, cond=None):
            seen.update(sigma.tolist())
            return super().log_prob(x, sigma, cond)

    model = gaussian(network=Spy)
    model.sampling = replace(model.sampling, schedule=registry.create("schedule", "karras", sigma_min=0.03))
    metrics_of(points, sigma_eval=sigma_eval, frechet=False).evaluate(model, None, 0)
    assert list(seen) == [pytest.approx(expected)]


def test_what_is_switched_off_is_not_measured(metrics_of, tiny, gaussian):
    unlabelled = copy.copy(tiny)
    unlabelled.num_classes = None
    unread = copy.copy(unlabelled)
    unread.train = unread.test = None
    with pytest.raises(ConfigurationError, match=r"set metrics\.frechet=false"):
        metrics_of(unread, frechet=True)
    off = dict.fromkeys(("frechet", "likelihood", "classify", "outliers", "interpolate"), False)
    found = metrics_of(unlabelled, **off).evaluate(gaussian(), None, 0)
    assert set(found) == {"test_loss", "test_loss_se"}
    home = metrics_of(unlabelled, cache_dir="~/somewhere", **off).cache_dir
    assert not str(home).startswith("~")


def test_samples_without_features_are_not_compared_and_the_log_says_so(metrics_of, tiny, points, caplog):
    """Pictures without classes, such as a folder with captions."""
    unlabelled = copy.copy(tiny)
    unlabelled.num_classes = None
    caplog.set_level("INFO")
    for data, compared in ((unlabelled, False), (tiny, True), (points, True)):
        metrics = metrics_of(data, frechet="auto")
        assert metrics.with_frechet == compared
        assert bool(metrics.comparisons) == compared
        metrics.tell_what_is_left_out()
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("samples are not compared: tiny has no class labels")


@pytest.fixture
def conditional(gaussian, labels_as_vectors):
    """A density of the classes of `tiny`, whose images lie around 60 grey levels times their class."""

    class OfClasses(GaussianFlow):
        def log_prob(self, x, sigma, cond=None):
            centre = 2 * (60 * cond.vector + 20) / 256 - 1  # (B, 1)
            return super().log_prob(x - centre.reshape(-1, 1, 1, 1), sigma)

    return gaussian(std=0.1, network=OfClasses, conditioner=labels_as_vectors)


def test_table_of_a_class_conditional_density_on_images(metrics_of, tiny, conditional, monkeypatch):
    found = metrics_of(tiny, frechet=False).densities(conditional, 0)
    assert set(found) == {
        *("bpd", "bpd_se", "class_accuracy", "class_accuracy_se", "class_ece", "num_classified", "auroc_permuted"),
        *("interpolation_bpd", "interpolation_bpd_se", "interpolation_straight"),
    }
    assert found["class_accuracy"] == 1  # the classes are 60 levels apart and 12 wide
    assert found["class_ece"] < 1e-6
    assert found["num_classified"] == 60
    # In an image of noise any order of the pixels is equally likely; only the dequantisation noise differs.
    assert found["auroc_permuted"] == pytest.approx(0.5, abs=0.02)
    monkeypatch.setattr(module, "AUTO_EVALUATIONS", 100)
    for asked, n in (("auto", 25), (True, 60)):  # a cheap number of samples, and all
        metrics = metrics_of(tiny, frechet=False, classify=asked, outliers=False, interpolate=False)
        assert metrics.densities(conditional, 0)["num_classified"] == n


def test_true_is_refused_if_the_model_or_the_data_do_not_allow_it(metrics_of, points, tiny, gaussian, raw):
    density, raw = gaussian(), raw()
    once = gaussian()
    once.network.twice_differentiable = False
    with pytest.raises(
        ConfigurationError, match=r"metrics\.ode\.measure=true needs a score that can be differentiated"
    ):
        metrics_of(points, ode={**ODE, "measure": True}).check(once)
    for data, model, key, sentence in (
        (tiny, raw, "classify", r"metrics\.classify=true needs a normalised density: take network=score_flow; or set "),
        (
            tiny,
            density,
            "classify",
            r"metrics\.classify=true needs a density of either classes or captions: take conditioner=class or text",
        ),
        (points, density, "outliers", r"metrics\.outliers=true needs images"),
        (tiny, raw, "interpolate", r"metrics\.interpolate=true needs a normalised density"),
    ):
        with pytest.raises(ConfigurationError, match=sentence):
            metrics_of(data, **{key: True}).check(model)
        for asked in ("auto", False):
            metrics = metrics_of(data, **{key: asked})
            metrics.check(model)
            assert not metrics.wants(key, model)


WRONG_COMPARISONS = [
    ({"precison_recall": {}}, "comparison=precison_recall is unknown: did you mean 'precision_recall'"),
    ({"mmd": {}}, r"metrics\.compare\.mmd\.num_samples is missing"),
    ({"mmd": {"num_samples": 1}}, r"metrics\.compare\.mmd\.num_samples=1 is not allowed"),
    ({"mmd": {"num_sample": 9}}, r"metrics\.compare\.mmd\.num_sample is not a setting of comparison=mmd: did you"),
    ({"inception_score": {"splits": 1}}, r"inception_score needs a classifier of images, and dataset=points"),
]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"ode": {**ODE, "rtol": -1}}, r"^metrics\.ode\.rtol=-1 is not allowed: input should be greater than 0\.$"),
        ({"ode": {**ODE, "x": 1}}, r"^metrics\.ode\.x is not a setting of metrics\.ode: allowed are measure, "),
        ({"ode": {"measure": True}}, r"^metrics\.ode\.rtol is missing: metrics\.ode needs it\.$"),
        ({"ode": True}, r"^metrics\.ode=True is not allowed: it is a group of settings; set metrics\.ode\.measure, "),
        ({"classify": None}, r"^metrics\.classify=None is not allowed: input should be 'auto', or input should be a"),
        ({"sigma_eval": -1.0}, r"^metrics\.sigma_eval=-1\.0 is not allowed: input should be 'auto', or input"),
        ({"num_samples": 1}, r"metrics\.num_samples=1"),
        *(({"compare": compare}, sentence) for compare, sentence in WRONG_COMPARISONS),
    ],
)
def test_wrong_settings_are_sentences(metrics_of, points, overrides, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        metrics_of(points, **overrides)


def test_a_single_sample_is_refused_and_samples_of_a_diverged_model_are_nan_everywhere(metrics_of, points):
    with pytest.raises(DataError, match="at least 2 samples"):
        metrics_of(points).frechet(torch.zeros(1, 2))
    metrics = metrics_of(points, repeats=2, num_samples=20)
    found = metrics.quality(lambda n, seed: torch.full((n, 2), math.nan), 0)
    assert all(math.isnan(found[f"{name}{part}"]) for name in ("fd_data", *COMPARED) for part in ("", "_sd"))
    assert all(math.isfinite(found[f"{name}_floor"]) for name in ("fd_data", *COMPARED))


def test_an_inverse_that_does_not_converge_only_drops_the_interpolation(metrics_of, points, gaussian, caplog):
    class Lost(GaussianFlow):
        def decode(self, z, sigma, cond=None):
            raise InverseDidNotConverge("the inverse is off.")

    found = metrics_of(points).densities(gaussian(network=Lost), 0)
    assert set(found) == {"nats_per_dim", "nats_per_dim_se"}
    assert "not interpolated: the inverse is off." in caplog.text


def test_fewer_samples_than_features_are_warned_about_once(metrics_of, digits, digits_cnn, caplog):
    metrics = metrics_of(digits)
    for n in (64, 64, 65):
        metrics.frechet(real(digits, digits.train)[:n])
    assert [record.message for record in caplog.records if "covariance" in record.message] == [
        "fd_digits_cnn of 64 samples: the covariance of 64 features is singular below 65 samples, and the distance "
        "is comparable only with distances of 64 samples; set metrics.num_samples > 64 for a distance to report."
    ]


def test_the_number_of_samples_is_reported_if_a_comparison_does_not_use_all(metrics_of, points):
    compare = {"mmd": {"num_samples": 299}, "precision_recall": {"neighbours": 3, "num_samples": 300}}
    found = metrics_of(points, num_samples=60, compare=compare).quality(lambda n, seed: points.train.x[:n], 0)
    assert {key: n for key, n in found.items() if key.endswith("_n")} == {"mmd2_n": 299}  # the floor has 300


def test_the_extractor_sees_real_samples_once_and_part_of_the_features_of_a_large_split_are_kept(
    points, tmp_path, monkeypatch
):
    monkeypatch.setattr(samples, "KEPT", 7)
    passed = []

    class Counting(IdentityFeatures):
        def forward(self, x):
            passed.append(len(x))
            return super().forward(x)

    split, x = samples.Real(points, "train", Counting(2), 250, tmp_path), points.train.x
    assert torch.equal(split.features(), x[evenly(600, 7)])
    assert torch.equal(split.features(3), x[evenly(600, 7)][[0, 3, 6]])
    assert split.statistics.n == 600
    torch.testing.assert_close(split.statistics.cov, torch.cov(x.T.double()))
    assert passed == [250, 250, 100]


@pytest.mark.parametrize("option", config.options("metrics"))
def test_every_comparison_of_every_option_exists_and_takes_its_settings(option, points, tiny, tmp_path):
    node = config.defaults("metrics", option)
    (tmp_path / "weights").touch()
    weights = str(tmp_path / "weights") if node["inception_weights"] else None
    data = tiny if option == "inception" else points
    metrics = registry.create("metrics", node, data=data, inception_weights=weights)
    assert list(metrics.comparisons) == ["frechet", *node["compare"]]
    lines = {name for option in config.options("metrics") for name in config.defaults("metrics", option)["compare"]}
    assert set(registry.names("comparison")) == {"frechet", "clip_score", *lines}  # clip_score needs a model


def test_a_comparison_of_a_plugin(metrics_of, points, tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    config.import_plugins([tmp_path / "mine.py"])
    metrics = metrics_of(points, compare={"furthest": {"power": 2.0}}, num_samples=10)
    found = metrics.quality(lambda n, seed: torch.ones(n, 2), 0)
    assert found["furthest"] == pytest.approx(2)
    assert found["furthest_floor"] == pytest.approx(points.test.x.square().sum(1).max().item())


PLUGIN = """
from pydantic import PositiveFloat
from flowdiff.evaluation.comparisons.base import Comparison
from flowdiff.registry import register


@register("comparison", "furthest")
class Furthest(Comparison):
    \"\"\"The largest norm of a sample, to some power.\"\"\"

    def __init__(self, *, power: PositiveFloat = 1.0):
        self.power = power

    def __call__(self, samples, train, test):
        return {"furthest": max(x.norm(dim=1).max().item() for x in samples.x()) ** self.power}
"""


def test_likelihood_over_a_sweep_of_sigma_and_by_the_ode(metrics_of, points, gaussian, raw):
    model = gaussian(std=0.4)
    off = {"frechet": False, "interpolate": False}
    metrics = metrics_of(points, sigma_sweep=[0.002, 2.0], ode={**ODE, "measure": True, "probes": None}, **off)
    found = metrics.densities(model, 0)
    assert found["nats_per_dim_sigma_0.002"] == found["nats_per_dim"] < found["nats_per_dim_sigma_2"]
    # N(0, 0.4²) noised to σ_max = 80 is not quite N(0, 80²)
    assert found["nats_per_dim_ode"] == pytest.approx(found["nats_per_dim"], abs=5e-5)
    assert found["nats_per_dim_ode_se"] == pytest.approx(found["nats_per_dim_se"], rel=1e-3)
    assert set(metrics.densities(raw(std=0.4), 0)) == {"nats_per_dim_ode", "nats_per_dim_ode_se"}
