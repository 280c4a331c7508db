"""The digits split against scikit-learn's own arrays."""

import pytest
import torch
from prepared_data import prepared


@pytest.fixture(scope="module")
def digits():
    return prepared("digits")


def test_split_holds_every_image_once(digits):
    from sklearn.datasets import load_digits

    images, target = load_digits(return_X_y=True)
    ours = torch.cat([digits.train[:].x, digits.test[:].x]).flatten(1)
    labels = torch.cat([digits.train[:].label, digits.test[:].label])
    assert (len(digits.train), len(digits.test)) == (1500, 297)
    assert ours.dtype == torch.uint8

    def rows(x, y):
        return sorted((*map(int, pixels), int(k)) for pixels, k in zip(x, y, strict=True))

    assert rows(ours.tolist(), labels) == rows(images, target)


def test_all_classes_and_levels_occur_in_both_splits(digits):
    for split in (digits.train, digits.test):
        batch = split[:]
        assert batch.label.bincount(minlength=digits.num_classes).min() > 0
        assert batch.x.unique().tolist() == list(range(digits.levels))
