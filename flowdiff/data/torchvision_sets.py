"""MNIST, Fashion-MNIST and CIFAR-10 in torchvision's folder layout, downloaded only if files are missing."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path
from typing import ClassVar, final

import torch
from pydantic import NonNegativeInt, PositiveInt

from flowdiff.data.base import DataModule, Split, TensorSplit
from flowdiff.data.pixels import Pixels
from flowdiff.errors import DataError
from flowdiff.registry import register

TIMEOUT = 20  # seconds a server may stay silent, so that a machine behind a firewall does not hang

IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


class TorchvisionSet(DataModule):
    """A data set of ten classes that torchvision reads.

    Args:
        root: folder of the files, in torchvision's layout; `~` is allowed.
        download: fetch the files if one is missing; if none is, the network is not used.
        batch_size: images per batch of one process, ≥ 1.
        num_workers: loader processes, ≥ 0; they change the speed only.
        dequantize: add uniform noise of one level's width to pixels; false takes the levels' midpoints.
        flip: mirror each training image left to right with probability 1/2.
        caption_template: caption of every image with {} for the name of its class; None: no captions.

    Attributes:
        reader: name of torchvision's class.
        folder: folder of its files, relative to root.
        files: names of its files.

    Raises:
        DataError: `prepare_data` and `setup`: files are missing, damaged, or cannot be downloaded.
    """

    num_classes = 10
    reader: ClassVar[str]
    folder: ClassVar[str]
    files: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        *,
        root: str,
        download: bool,
        batch_size: PositiveInt,
        num_workers: NonNegativeInt,
        dequantize: bool,
        flip: bool,
        caption_template: str | None,
    ) -> None:
        super().__init__(Pixels(256, dequantize, flip), batch_size, num_workers, caption_template)
        self.root = Path(root).expanduser()
        self.download = download

    @final
    def prepare_data(self) -> None:
        """Download missing files.

        Files are fetched into a temporary folder and then moved into place one by one, each atomically: runs that
        start together may all download, and none reads half a file.
        """
        missing = self._missing()
        if not self.download or missing is None:
            return
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(TIMEOUT)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".download-", dir=self.root) as temporary:
                self._reader()(temporary, download=True)
                (self.root / self.folder).mkdir(parents=True, exist_ok=True)
                for file in self.files:
                    os.replace(Path(temporary) / self.folder / file, self.root / self.folder / file)
        except Exception as error:  # torchvision and urllib raise many kinds; each means that files are missing
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise DataError(
                f"{self.name} needs {missing}, which is not there and could not be downloaded ({reason}): put"
                f" the files there, or set dataset.root (or the variable FLOWDIFF_DATA) to the folder that"
                f" holds {self.folder}."
            ) from error
        finally:
            socket.setdefaulttimeout(before)

    @final
    def load(self) -> tuple[Split, Split]:
        missing = self._missing()
        if missing is not None:
            raise DataError(
                f"{self.name} needs {missing}, which is not there: set dataset.download=true, or set"
                f" dataset.root (or the variable FLOWDIFF_DATA) to the folder that holds {self.folder}."
            )
        return self._read(train=True), self._read(train=False)

    def _read(self, train: bool) -> TensorSplit:
        try:
            files = self._reader()(self.root, train=train)
        except Exception as error:  # a damaged file can fail anywhere in its parser
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise DataError(
                f"the files of {self.name} in {self.root / self.folder} cannot be read ({reason}): delete"
                f" them and fetch them again."
            ) from error
        images = torch.as_tensor(files.data)  # (n, H, W) or (n, H, W, 3)
        images = images.reshape(*images.shape[:3], -1).permute(0, 3, 1, 2).contiguous()  # (n, C, H, W)
        label = torch.as_tensor(files.targets)
        if len(images) != len(label):
            raise DataError(
                f"{self.name} has {len(images)} images but {len(label)} labels in {self.root / self.folder}:"
                f" delete the files and fetch them again."
            )
        return TensorSplit(images, label)

    def _reader(self) -> type:
        import torchvision.datasets

        return getattr(torchvision.datasets, self.reader)

    def _missing(self) -> Path | None:
        """The first missing file."""
        paths = (self.root / self.folder / file for file in self.files)
        return next((path for path in paths if not path.is_file()), None)


@final
@register("dataset", "mnist")
class MNIST(TorchvisionSet):
    """Handwritten digits: 60,000 training and 10,000 test images (1, 28, 28).

    Source: LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document recognition", 1998.
    """

    name = "mnist"
    shape = (1, 28, 28)
    class_names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    reader = "MNIST"
    folder = "MNIST/raw"
    files = IDX_FILES


@final
@register("dataset", "fashion_mnist")
class FashionMNIST(TorchvisionSet):
    """Photographs of clothes: 60,000 training and 10,000 test images (1, 28, 28).

    Source: Xiao, Rasul, Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine learning
    algorithms", 2017.
    """

    name = "fashion_mnist"
    shape = (1, 28, 28)
    class_names = (
        *("t-shirt", "pair of trousers", "pullover", "dress", "coat"),
        *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
    )
    reader = "FashionMNIST"
    folder = "FashionMNIST/raw"
    files = IDX_FILES


@final
@register("dataset", "cifar10")
class CIFAR10(TorchvisionSet):
    """Photographs of ten kinds of animals and vehicles: 50,000 training and 10,000 test images (3, 32, 32).

    Source: Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
    """

    name = "cifar10"
    shape = (3, 32, 32)
    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    reader = "CIFAR10"
    folder = "cifar-10-batches-py"
    files = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
