import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from flowdiff.errors import DataError
from flowdiff.evaluation.features.statistics import FeatureStatistics, frechet_distance

D = 12


def features(n, seed, rank=D):
    """n correlated features (n, D) that span `rank` dimensions, float64."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(rank, D, generator=generator, dtype=torch.float64)
    return torch.randn(n, rank, generator=generator, dtype=torch.float64) @ mixing + 0.3 * seed


def statistics(x):
    return FeatureStatistics(x.shape[1]).update(x)


def by_sqrtm(a, b):
    mean_a, mean_b, cov_a, cov_b = a.mean(0), b.mean(0), np.cov(a.T), np.cov(b.T)
    return ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real)


def test_streaming_equals_the_statistics_of_all_at_any_offset():
    x = features(101, 1) + 1e4  # a mean far from 0 would cancel in Σ ffᵀ − n·mean·meanᵀ
    parts = FeatureStatistics(D)
    for part in x.split(17):
        parts.update(part)
    merged = statistics(x[:40]).merge(FeatureStatistics(D)).merge(statistics(x[40:]))
    for found in (parts, merged, FeatureStatistics.from_state_dict(parts.state_dict())):
        assert found.n == 101
        # 1e4 carries a relative rounding of 2e-16 into squares of size 1e8
        torch.testing.assert_close(found.mean, x.mean(0), rtol=1e-13, atol=0)
        torch.testing.assert_close(found.cov, torch.cov(x.T), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("n", "rank", "tolerance"), [(200, D, 1e-9), (200, 5, 1e-5), (7, D, 1e-5)])
def test_equals_sqrtm(n, rank, tolerance):
    # sqrtm of a singular product is itself good to the root of the rounding error only
    a, b = features(n, 1, rank), features(n + 3, 2, rank)
    found = frechet_distance(statistics(a), statistics(b))
    assert found == pytest.approx(by_sqrtm(a.numpy(), b.numpy()), rel=tolerance)


def test_features_of_deficient_rank_are_exact_too():
    # in the span of a few samples, then rotated into 200 dimensions, where most eigenvalues are rounding errors
    a, b = (torch.randn(n, 6, generator=torch.Generator().manual_seed(n), dtype=torch.float64) for n in (40, 50))
    basis = torch.linalg.qr(torch.randn(200, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0].T
    exact = frechet_distance(statistics(a), statistics(b))
    assert frechet_distance(statistics(a @ basis), statistics(b @ basis)) == pytest.approx(exact, rel=1e-10)
    constant = statistics(torch.ones(3, 4))
    assert frechet_distance(constant, constant) == 0


@pytest.mark.parametrize("n", [2, 7, 60, 300])
def test_known_distances(n):
    """0 for identical sets, symmetric, unchanged by a rotation of both, and a closed form in one dimension."""
    a, b = statistics(features(n, 1)), statistics(features(n, 2))
    distance = frechet_distance(a, b)
    # the root of eigenvalues that should be 0 leaves about 1e-8 of the trace
    assert frechet_distance(a, a) <= 1e-6 * a.cov.trace().item()
    assert distance == pytest.approx(frechet_distance(b, a), rel=1e-6)
    rotation = torch.linalg.qr(features(D, 3))[0]
    turned = [statistics(features(n, seed) @ rotation) for seed in (1, 2)]
    assert frechet_distance(*turned) == pytest.approx(distance, rel=1e-10 if n > D else 1e-6)
    # means 1 and 4, standard deviations √2 and √18: 9 + (√18 − √2)² = 9 + 8
    one, other = (statistics(torch.tensor(x)) for x in ([[0.0], [2.0]], [[1.0], [7.0]]))
    assert frechet_distance(one, other) == pytest.approx(17, rel=1e-12)


def test_features_that_do_not_fit_are_refused():
    for n in (0, 1):
        with pytest.raises(DataError, match=f"at least 2 samples, but {n} were given"):
            frechet_distance(statistics(features(9, 1)), statistics(features(n, 1)))
    with pytest.raises(DataError, match="one extractor"):
        frechet_distance(statistics(torch.randn(9, 3)), statistics(torch.randn(9, 4)))
    with pytest.raises(DataError, match=r"give \(N, 3\)"):
        FeatureStatistics(3).update(torch.randn(9, 4))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_features_of_a_diverged_model_give_nan(bad):
    x = features(9, 1)
    x[3, 2] = bad
    assert math.isnan(frechet_distance(statistics(x), statistics(features(9, 2))))
