"""Comparisons of sets of samples whose result is known."""

import copy
import math

import pytest
import torch

from flowdiff import registry
from flowdiff.evaluation.comparisons.kernel import mmd2, polynomial
from flowdiff.evaluation.comparisons.neighbours import inside, radii
from flowdiff.evaluation.features.identity import IdentityFeatures
from flowdiff.evaluation.features.samples import Generated, Real

SETTINGS = {
    "sliced_wasserstein": {"projections": 200, "num_samples": 500},
    "mmd": {"num_samples": 500},
    "kernel_distance": {"subsets": 5, "subset_size": 400},
    "precision_recall": {"neighbours": 3, "num_samples": 500},
    "density_coverage": {"neighbours": 5, "num_samples": 500},
    "memorisation": {"quantile": 0.01, "num_samples": 500},
    "frechet": {},
}
DISTANCES = ("frechet", "kernel_distance", "mmd", "sliced_wasserstein")


@pytest.fixture
def measure(blobs, tmp_path):
    extractor = IdentityFeatures(2)
    train, test = (Real(blobs, which, extractor, 250, tmp_path) for which in ("train", "test"))

    def call(name, x=None, **settings):
        comparison = registry.create("comparison", {"name": name, **SETTINGS[name], **settings})
        return comparison(test if x is None else Generated(x, extractor, blobs, 250), train, test)

    return call


@pytest.mark.parametrize("name", DISTANCES)
def test_a_distance_rises_under_noise_and_dropped_modes_and_is_deterministic(name, measure, blobs):
    x, generator = blobs.test.x, torch.Generator().manual_seed(0)
    noise = torch.randn(x.shape, generator=generator)
    (key,) = measure(name)
    noised = [measure(name, x + s * noise)[key] for s in (0.3, 0.6)]
    dropped = [measure(name, x[kept])[key] for kept in ((x[:, 0] < 0) | (x[:, 1] > 0), x[:, 0] < 0)]
    floor = measure(name)[key]
    assert floor < noised[0] < noised[1]
    assert floor < dropped[0] < dropped[1]
    assert measure(name) == {key: floor}


def test_sliced_wasserstein_of_a_shift_is_its_length(measure, blobs):
    shift = torch.tensor([0.3, 0.4])
    train = blobs.train.x[torch.linspace(0, 999, 500, dtype=torch.float64).round().long()]
    found = measure("sliced_wasserstein", train + shift, projections=2000)
    # E_θ ⟨θ, m⟩² = ‖m‖²/D; 2,000 lines: standard error 1.6 % of the square
    assert found["sliced_wasserstein"] == pytest.approx(0.5 / math.sqrt(2), rel=0.03)


def test_mmd_is_the_double_sum_and_vanishes_on_average():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(7, 3, generator=generator), torch.randn(5, 3, generator=generator) + 1

    def k(a, b):
        return (a @ b / 3 + 1) ** 3

    within = [sum(k(a, b) for i, a in enumerate(s) for j, b in enumerate(s) if i != j) for s in (x, y)]
    exact = within[0] / 42 + within[1] / 20 - 2 * sum(k(a, b) for a in x for b in y) / 35
    assert mmd2(polynomial, x, y) == pytest.approx(exact.item(), rel=1e-5)
    pairs = torch.randn(400, 2, 20, 3, generator=generator, dtype=torch.float64)
    found = torch.tensor([mmd2(polynomial, *pair) for pair in pairs], dtype=torch.float64)
    assert abs(found.mean()) < 4 * found.std() / 20  # unbiased


def test_kernel_distance_and_neighbours_equal_torch_fidelity(blobs):
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    real, x = blobs.train.x[:600].double(), blobs.test.x.double() + 0.1
    kid = kid_features_to_metric(x, real, kid_subsets=1, kid_subset_size=600, verbose=False)
    assert mmd2(polynomial, x, real) == pytest.approx(kid["kernel_inception_distance_mean"], rel=1e-9)
    theirs = prc_features_to_metric(x, real, prc_neighborhood=3, verbose=False)
    ours = [inside(a, radii(a, 3), b)[0].mean().item() for a, b in ((real, x), (x, real))]
    # which argument holds the real samples differs between versions of torch-fidelity
    assert sorted(ours) == pytest.approx(sorted((theirs["precision"], theirs["recall"])), rel=1e-6)


def test_balls_on_a_line():
    centres, points = torch.tensor([[0.0], [1.0], [3.0]]).double(), torch.tensor([[0.5], [-2.0], [4.5]]).double()
    assert radii(centres, 1).tolist() == [1, 1, 2]
    assert radii(centres, 2).tolist() == radii(centres, 9).tolist() == [3, 2, 3]
    found = inside(centres, radii(centres, 1), points)
    assert [part.tolist() for part in found] == [[1, 0, 1], [2, 0, 1], [1, 1, 1]]


def test_precision_and_recall_tell_bad_samples_from_missing_ones(measure, blobs):
    x = blobs.test.x
    poor, narrow = torch.cat([x[:300], x[300:] + 5]), x[x[:, 0] < 0]
    assert measure("precision_recall", poor)["precision"] == pytest.approx(0.5, abs=0.05)
    # outliers between the halves have balls as large as the gap
    assert measure("precision_recall", narrow)["precision"] > 0.85
    assert measure("precision_recall", narrow)["recall"] < 0.45
    assert measure("density_coverage", narrow)["coverage"] < 0.45


def test_density_and_coverage_of_one_distribution_agree_with_theory_at_any_size(measure, blobs):
    # Naeem et al.: density 1, coverage 1 − ∏ (n − i)/(2n − i) over i = 1 … k, 0.969 for k = 5; n = 500
    for found in (measure("density_coverage"), measure("density_coverage", blobs.test.x[:200])):
        assert found["density"] == pytest.approx(1, abs=0.15)
        assert found["coverage"] == pytest.approx(0.969, abs=0.04)


def test_a_model_that_returns_some_training_samples_is_flagged(measure, blobs, caplog):
    assert measure("memorisation")["memorised"] == pytest.approx(0.01, abs=0.005)
    assert measure("memorisation", blobs.train.x[:300] + 0.05 * torch.randn(300, 2))["memorised"] < 0.1
    assert not caplog.records
    one_in_ten = blobs.test.x[:400].clone()
    one_in_ten[::10] = blobs.train.x[:40]
    found, of_some = (measure("memorisation", x) for x in (blobs.train.x[:300], one_in_ten))
    assert found == {"memorised": 1, "train_distance": 0}
    assert 0.1 <= of_some["memorised"] < 0.13
    assert caplog.text.count("copies of training samples") == 2


def test_a_floor_of_fewer_samples_than_features_is_logged(blobs, tmp_path, caplog):
    few = copy.copy(blobs)
    few.test = type(blobs.test)(blobs.test.x[:2], blobs.test.label[:2])
    train, test = (Real(few, which, IdentityFeatures(2), 250, tmp_path) for which in ("train", "test"))
    registry.create("comparison", {"name": "frechet"})(test, train, test)
    assert "fd_data of 2 test samples, the floor: the covariance of 2 features is singular below 3" in caplog.text


@pytest.mark.parametrize("classes", [1, 4])
def test_inception_score_counts_certain_classes(classes):
    class Certain(IdentityFeatures):
        def __init__(self):
            super().__init__(4)
            self.head = torch.nn.Linear(4, 4)
            torch.nn.init.eye_(self.head.weight)

    class Set:
        n, extractor = 400, Certain()

        def features(self, most=None):
            return 1000 * torch.eye(4)[torch.arange(400) % classes]

    comparison = registry.create("comparison", {"name": "inception_score", "splits": 1})
    assert comparison(Set(), None, None) == {"is_data": pytest.approx(classes, rel=1e-6)}
