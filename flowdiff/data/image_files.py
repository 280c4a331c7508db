"""Base of the data sets of picture files: a list of names, decoded when a batch needs them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, final

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from flowdiff.data.base import DataModule, Split, held_out
from flowdiff.data.pixels import Pixels
from flowdiff.errors import DataError

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
MODES = {1: "L", 3: "RGB"}  # PIL's names for grey and colour


class Listing(NamedTuple):
    """The pictures of one folder or archive."""

    names: list[str]
    labels: list[int] | None  # class of each picture; None without labels
    decode: Callable[[str], np.ndarray]  # name to uint8 (H, W, C)
    class_names: Sequence[str] = ()  # of the source, if it has any


@final
class LazySplit(Split):
    """The pictures of a listing, decoded each time they are read.

    Args:
        listing: the pictures.
        part: positions of those in this split, int64; None for all.
    """

    def __init__(self, listing: Listing, part: Tensor | None = None) -> None:
        n = len(listing.names)
        label = torch.zeros(n, dtype=torch.int64) if listing.labels is None else torch.tensor(listing.labels)
        part = torch.arange(n) if part is None else part
        super().__init__(label[part])
        # An array of strings is one object, which loader processes share; they would copy a list page by page.
        self.names = np.array(listing.names)[part.numpy()]
        self.decode = listing.decode

    def read(self, indices: Tensor) -> Tensor:
        images = np.stack([self.decode(str(name)) for name in self.names[indices.numpy()]])  # (B, H, W, C)
        return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


class ImageFiles(DataModule):
    """Square images (channels, image_size, image_size), uint8, from `path`."""

    def __init__(
        self,
        *,
        path: str,
        test_path: str | None,
        test_fraction: Annotated[float, Field(gt=0, lt=1)],
        image_size: PositiveInt,
        channels: Literal[1, 3],
        num_classes: PositiveInt | None,
        batch_size: PositiveInt,
        num_workers: NonNegativeInt,
        dequantize: bool,
        flip: bool,
    ) -> None:
        super().__init__(Pixels(256, dequantize, flip), batch_size, num_workers)
        self.shape = (channels, image_size, image_size)
        self.num_classes = num_classes
        self.path = path
        self.test_path = test_path
        self.test_fraction = test_fraction

    @abstractmethod
    def listing(self, path: Path, key: str) -> Listing:
        """The pictures at `path`, the value of the config key dataset.`key`; raises DataError if none fit."""

    @final
    def load(self) -> tuple[Split, Split]:
        train = self.listing(Path(self.path).expanduser(), "path")
        if self.test_path is not None:
            test = self.listing(Path(self.test_path).expanduser(), "test_path")
            if test.class_names != train.class_names:
                odd = sorted(set(test.class_names) ^ set(train.class_names))
                raise DataError(
                    f"{self.path} and {self.test_path} do not have the same class subfolders, only one of"
                    f" them has {', '.join(odd)}: rename or remove folders until both agree."
                )
            return LazySplit(train), LazySplit(test)
        n = len(train.names)
        if n < 2:
            raise DataError(
                f"{self.path} holds one image, so none can be held out: set dataset.test_path or give more images."
            )
        kept, tested = held_out(n, num_test=min(max(1, round(n * self.test_fraction)), n - 1))
        return LazySplit(train, kept), LazySplit(train, tested)
