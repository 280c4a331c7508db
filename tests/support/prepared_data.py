"""Data sets by their registered names, ready to be read."""

import torch

from flowdiff import registry
from flowdiff.data.base import DataModule


def prepared(name: str, **settings) -> DataModule:
    """The data set with its splits loaded."""
    data = registry.create("dataset", name, **settings)
    data.prepare_data()
    data.setup()
    return data


def holds(split, x, label) -> None:
    """The split has exactly these images (uint8) and labels."""
    batch = split[:]
    assert batch.x.dtype == torch.uint8
    assert torch.equal(batch.x, torch.as_tensor(x))
    assert batch.label.tolist() == torch.as_tensor(label).tolist()
