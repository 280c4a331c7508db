"""AUROC of known scores, the permutation, and the other data sets that are found on disk."""

import copy
import math

import numpy as np
import pytest
import torch

from flowdiff import registry
from flowdiff.evaluation.densities.outliers import auroc, neighbours, outlier_scores, permuted


def test_auroc_of_normal_scores():
    """P(a > b) = Φ(μ/√2) for a ~ N(μ, 1) and b ~ N(0, 1)."""
    generator = torch.Generator().manual_seed(0)
    own, foreign = torch.randn(4000, generator=generator) + 1, torch.randn(3000, generator=generator)
    expected = 0.5 * (1 + math.erf(0.5))
    assert auroc(own, foreign) == pytest.approx(expected, abs=0.02)  # 3 standard errors of about 0.006
    assert auroc(foreign, own) == pytest.approx(1 - auroc(own, foreign))


def test_ties_count_half_and_a_nan_makes_the_auroc_nan():
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


@pytest.fixture
def idx_files(tmp_path):
    """Tiny MNIST and Fashion-MNIST of constant images, and a function that makes their data sets."""

    def write(path, values, shape):
        header = bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape)
        path.write_bytes(header + np.full(shape, values, dtype=np.uint8).tobytes())

    def make(folder, level):
        raw = tmp_path / folder / "raw"
        raw.mkdir(parents=True)
        for part, n in (("train", 6), ("t10k", 4)):
            write(raw / f"{part}-images-idx3-ubyte", level, (n, 28, 28))
            write(raw / f"{part}-labels-idx1-ubyte", 1, (n,))

    make("MNIST", 10)
    make("FashionMNIST", 200)
    return lambda name: registry.create("dataset", name, root=str(tmp_path), download=False)


def test_the_other_set_of_the_same_shape_is_used_if_it_is_on_disk(idx_files, tmp_path, gaussian, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: pytest.fail("tried to download"))
    data = idx_files("mnist")
    data.setup()
    assert [name for name, _ in neighbours(data)] == ["fashion_mnist"]
    dark = 2 * 10.5 / 256 - 1
    scores = outlier_scores(gaussian(dark, 0.1), data, 0.1, seed=0, batch_size=3)
    assert scores == {"permuted": pytest.approx(0.5, abs=0.5), "fashion_mnist": 1.0}
    (tmp_path / "FashionMNIST" / "raw" / "t10k-images-idx3-ubyte").unlink()
    assert neighbours(data) == []


def test_other_kinds_of_data_have_no_neighbours(tiny):
    assert neighbours(copy.copy(tiny)) == []
