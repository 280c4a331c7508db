"""NaN, infinity and data without any scale are named before anything is trained."""

import math

import pytest
import torch
from given_data import GivenData

from flowdiff import build
from flowdiff.data.base import Split, TensorSplit
from flowdiff.errors import DataError


class OneByOne(Split):
    """Vectors that are not held in memory."""

    def __init__(self, x):
        super().__init__(torch.zeros(len(x), dtype=torch.int64))
        self.x = x

    def read(self, indices):
        return self.x[indices]


def points(n=5000, d=3):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0))


def data_of(train, test, kind=TensorSplit):
    return GivenData("given", kind(train), kind(test), None, None)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", [TensorSplit, OneByOne])
@pytest.mark.parametrize("which", ["training", "test"])
def test_the_split_the_sample_and_the_column_are_named(value, kind, which):
    good, bad = points(), points()
    bad[4321, 1] = value
    bad[4400, 0] = math.nan
    train, test = (bad, good) if which == "training" else (good, bad)
    with pytest.raises(DataError, match=rf"sample 4321 of the {which} split of given is {value} in column 1 \(both"):
        data_of(train, test, kind).setup()


def test_a_value_of_a_float_picture_is_named_by_its_indices():
    x = torch.zeros(4, 1, 2, 2)
    x[2, 0, 1, 0] = math.nan
    with pytest.raises(DataError, match=r"sample 2 .* in column \(0, 1, 0\)"):
        data_of(x, torch.zeros(4, 1, 2, 2)).setup()


def measured(x):
    """sigma_data of a training split x, as an engine measures it."""
    engine = build(
        "dataset=two_moons", "conditioner=none", "metrics.frechet=false", "dataset.num_train=8", "dataset.num_test=8"
    )
    engine.latents.train = TensorSplit(x)
    engine.latents._loaded = True
    return engine.measure()


@pytest.mark.parametrize(
    ("scale", "sentence"),
    [
        (0.0, "every value of the training split of two_moons is 0, so sigma_data is 0"),
        (1e20, r"sigma_data of the training split of two_moons is 9.*e\+19, which is too extreme for float32"),
        (1e-20, r"sigma_data of the training split of two_moons is 9.*e-21, which is too extreme for float32"),
    ],
)
def test_data_without_a_usable_scale_are_refused(scale, sentence):
    with pytest.raises(DataError, match=sentence):
        measured(points(200, 2) * scale)


def test_a_constant_column_is_fine():
    x = points(200, 2)
    x[:, 1] = 2.0
    assert measured(x) == pytest.approx(float(x.square().mean().sqrt()))
