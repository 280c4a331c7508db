"""MNIST and its like as torchvision lays them out, written from random images."""

from pathlib import Path

import numpy as np

from flowdiff import registry
from flowdiff.data.torchvision_sets import IDX_FILES

Split = tuple[np.ndarray, np.ndarray]


def arrays(shape: tuple[int, ...], n: int, seed: int) -> Split:
    """n images and their labels, uint8."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, *shape), dtype=np.uint8), rng.integers(0, 10, n, dtype=np.uint8)


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(header + array.tobytes())


def write_idx_set(root: Path, name: str, train: Split, test: Split) -> None:
    """The four files of dataset=name below root."""
    folder = root / registry.resolve("dataset", name).folder
    folder.mkdir(parents=True)
    for file, array in zip(IDX_FILES, (*train, *test), strict=True):
        write_idx(folder / file, array)
