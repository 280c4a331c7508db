"""AUROC of known scores, the permutation, and the other data sets that are found on disk."""

import copy
import math

import numpy as np
import pytest
import torch
from idx_files import write_idx_set
from prepared_data import prepared

from flowdiff.evaluation.densities.outliers import auroc, neighbours, outlier_scores, permuted


def test_auroc_of_normal_scores():
    """P(a > b) = Φ(μ/√2) for a ~ N(μ, 1) and b ~ N(0, 1)."""
    generator = torch.Generator().manual_seed(0)
    own, foreign = torch.randn(4000, generator=generator) + 1, torch.randn(3000, generator=generator)
    expected = 0.5 * (1 + math.erf(0.5))
    assert auroc(own, foreign) == pytest.approx(expected, abs=0.02)  # 3 standard errors of about 0.006
    assert auroc(foreign, own) == pytest.approx(1 - auroc(own, foreign))
    # Ties count half, and a NaN makes the AUROC NaN.
    assert auroc(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0])) == 0.75
    assert auroc(torch.zeros(5), torch.zeros(3)) == 0.5
    assert math.isnan(auroc(torch.tensor([0.0, torch.nan]), torch.zeros(2)))


def test_permuting_keeps_every_value_and_moves_all_samples_alike():
    x = torch.arange(2 * 1 * 4 * 4.0).view(2, 1, 4, 4)
    y = permuted(x)
    assert torch.equal(y[0].flatten().sort().values, x[0].flatten())
    assert torch.equal(y[1], y[0] + 16)
    assert not torch.equal(y, x)


def test_a_density_that_knows_where_the_ink_is_detects_permuted_digits(digits, gaussian):
    mean = torch.cat([digits.quantize(2 * (digits.train.x + 0.5) / 17 - 1)]).mean(0)
    scores = outlier_scores(gaussian(mean, 0.4), digits, 0.1, seed=0, batch_size=100)
    assert scores["permuted"] > 0.99
    blind = outlier_scores(gaussian(0.0, 0.4), digits, 0.1, seed=0, batch_size=100, most=50)
    # It depends on the norm of an image only, and only the dequantisation noise changes that.
    assert blind["permuted"] == pytest.approx(0.5, abs=0.02)


def test_the_other_set_of_the_same_shape_is_used_if_it_is_on_disk(tmp_path, tiny, gaussian, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: pytest.fail("tried to download"))
    for name, level in (("mnist", 10), ("fashion_mnist", 200)):  # constant images
        splits = [(np.full((n, 28, 28), level, np.uint8), np.ones(n, np.uint8)) for n in (6, 4)]
        write_idx_set(tmp_path, name, *splits)
    data = prepared("mnist", root=str(tmp_path), download=False)
    assert [name for name, _ in neighbours(data)] == ["fashion_mnist"]
    dark = 2 * 10.5 / 256 - 1
    scores = outlier_scores(gaussian(dark, 0.1), data, 0.1, seed=0, batch_size=3)
    assert scores == {"permuted": pytest.approx(0.5, abs=0.5), "fashion_mnist": 1.0}
    (tmp_path / "FashionMNIST" / "raw" / "t10k-images-idx3-ubyte").unlink()
    assert neighbours(data) == neighbours(copy.copy(tiny)) == []
