"""The digits split against scikit-learn's own arrays."""

import torch
from prepared_data import prepared


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
