"""The digits split against scikit-learn's own arrays."""

import pytest
import torch
from prepared_data import prepared

from flowdiff import registry
from flowdiff.errors import ConfigurationError


def test_splits_hold_every_image_once_and_each_all_classes_and_levels():
    from sklearn.datasets import load_digits

    digits, (images, target) = prepared("digits"), load_digits(return_X_y=True)
    ours = torch.cat([digits.train[:].x, digits.test[:].x]).flatten(1)
    labels = torch.cat([digits.train[:].label, digits.test[:].label])
    assert (len(digits.train), len(digits.test)) == (1500, 297)
    assert ours.dtype == torch.uint8

    def rows(x, y):
        return sorted((*map(int, pixels), int(k)) for pixels, k in zip(x, y, strict=True))

    assert rows(ours.tolist(), labels) == rows(images, target)
    for split in (digits.train, digits.test):
        batch = split[:]
        assert batch.label.bincount(minlength=digits.num_classes).min() > 0
        assert batch.x.unique().tolist() == list(range(digits.levels))


def test_some_classes_with_few_images_of_each():
    whole = prepared("digits")
    few = registry.create("dataset", {**registry.completed("dataset", {"name": "digits"}), "classes": [8, 3], "num_per_class": 5})
    few.setup()
    assert few.num_classes == 10
    assert few.train[:].label.bincount().tolist() == [0, 0, 0, 5, 0, 0, 0, 0, 5]
    eights = whole.train[:].x[whole.train[:].label == 8]
    assert torch.equal(few.train[:].x[few.train[:].label == 8], eights[:5])
    assert sorted(few.test[:].label.unique().tolist()) == [3, 8]
    assert len(few.test) == int(((whole.test[:].label == 3) | (whole.test[:].label == 8)).sum())


@pytest.mark.parametrize("classes", [[], [10], [3, 3]])
def test_classes_that_are_not_there_are_refused(classes):
    node = {**registry.completed("dataset", {"name": "digits"}), "classes": classes}
    with pytest.raises(ConfigurationError, match=r"dataset\.classes="):
        registry.create("dataset", node)
