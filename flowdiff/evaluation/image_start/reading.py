"""A single picture of a file as a sample of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from flowdiff.data.base import DataModule
from flowdiff.data.image_files import MODES, Background, PictureReader
from flowdiff.errors import ConfigurationError, DataError
from flowdiff.shapes import times


class OnePicture(PictureReader):
    """Reads the picture of a file.

    Args:
        path: the file.
        shape: (C, H, W) with H = W.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        super().__init__(path, shape, Background("white"))

    def open(self, name: str) -> IO[bytes]:
        return self.source.open("rb")

    def where(self, name: str) -> str:
        return str(self.source)

    def __call__(self, name: str) -> np.ndarray:
        return self.square(name)


def read_picture(path: str, data: DataModule, setting: str = "image") -> Tensor:
    """The largest centred square of a picture in the size and the range of a data set's samples, (C, H, W).

    Args:
        path: its file.
        data: the data set.
        setting: what has named the file, for messages.

    Raises:
        ConfigurationError: the samples are no square grey or colour images, or the file cannot be read as a picture.
    """
    shape = data.shape
    if len(shape) != 3 or shape[0] not in MODES or shape[1] != shape[2] or data.levels is None:
        raise ConfigurationError(
            f"{setting}={path} is for runs of square pictures, and the samples of {data.name} have the shape "
            f"{times(shape)}: take another run, or another start."
        )
    if not Path(path).expanduser().is_file():
        raise ConfigurationError(f"{setting}={path} is not a file: give the file of a picture.")
    try:
        pixels = OnePicture(Path(path).expanduser(), shape)("")
    except DataError as error:
        reason = str(error).partition(" cannot be decoded ")[2].partition("):")[0].lstrip("(") or "it is too large"
        raise ConfigurationError(f"{setting}={path} cannot be read ({reason}): give the file of a picture.") from error
    levels = torch.from_numpy(pixels).permute(2, 0, 1)
    return (levels.float() + 0.5) * (2 / 256) - 1
