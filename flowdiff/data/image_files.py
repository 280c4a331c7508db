"""Base of the data sets of picture files: a list of names, decoded when a batch needs them.

Every picture becomes 8-bit grey or colour: it is turned upright as its EXIF data say, 16-bit levels are divided by 257
(65535 becomes 255), and transparent pixels are composited over the colour `background`.
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import IO, TYPE_CHECKING, Annotated, Literal, NamedTuple, final

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from flowdiff.data.base import Captions, DataModule, Split, held_out
from flowdiff.data.pixels import Pixels
from flowdiff.errors import ConfigurationError, DataError, FlowdiffError

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
MODES = {1: "L", 3: "RGB"}  # PIL's names for grey and colour
GREY_MODES = frozenset({"1", "L", "LA", "I", "I;16", "I;16B"})
ALPHA_MODES = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
UNSEEN_NAMES = frozenset({"__MACOSX", "@eaDir", "lost+found"})  # what macOS, a NAS and ext4 leave in folders


def is_unseen(name: str) -> bool:
    """Whether a file or folder of this name is never data: hidden (.DS_Store, ._x.png, …) or left by a system."""
    return name.startswith(".") or name in UNSEEN_NAMES


def is_picture(name: str) -> bool:
    """Whether a name, with its folders, has the ending of a picture and no unseen part."""
    path = PurePosixPath(name)
    return path.suffix.lower() in EXTENSIONS and not any(map(is_unseen, path.parts)) and not name.endswith("/")


def pictures_below(folder: Path, *, subfolders: bool = True) -> Iterator[str]:
    """Names, relative to the folder, of its pictures, at any depth or without those in subfolders.

    Links are followed, but not in circles.
    """

    def walk(here: str, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
        status = os.stat(here)
        me = status.st_dev, status.st_ino
        if me in above:
            return
        with os.scandir(here) as scan:
            entries = [entry for entry in scan if not is_unseen(entry.name)]
        for entry in entries:
            if entry.is_dir():
                if subfolders:
                    yield from walk(entry.path, f"{prefix}{entry.name}/", above | {me})
            elif is_picture(entry.name) and entry.is_file():
                yield prefix + entry.name

    try:
        yield from walk(str(folder), "", frozenset())
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}): allow it, or remove it.") from error


class Background:
    """The colour behind transparent pixels; the log says once that there are such pixels.

    Args:
        colour: its name, or #rrggbb.

    Raises:
        ConfigurationError: it is not a colour.
    """

    def __init__(self, colour: str) -> None:
        try:
            red, green, blue = pillow().ImageColor.getrgb(colour)
        except ValueError:
            raise ConfigurationError(
                f"dataset.background={colour} is not a colour: give a name such as white or black, or '#rrggbb'."
            ) from None
        self.colour = colour
        self.opaque = red, green, blue, 255
        self._told = False

    def behind(self, image: Image, where: str) -> Image:
        """The picture over this colour if it has transparent pixels; where: its name for the log."""
        if image.mode not in ALPHA_MODES and "transparency" not in image.info:
            return image
        rgba = image.convert("RGBA")
        if rgba.getchannel("A").getextrema()[0] == 255:
            return rgba
        if not self._told:
            self._told = True
            log.info("%s has transparent pixels: dataset.background=%s is put behind them", where, self.colour)
        canvas: Image = pillow().Image.new("RGBA", rgba.size, self.opaque)
        canvas.alpha_composite(rgba)
        return canvas


class PictureReader(ABC):
    """Decodes the pictures of one folder or archive to uint8 (H, W, C).

    Args:
        source: the folder or archive.
        shape: (C, H, W).
        background: the colour behind transparent pixels.
    """

    def __init__(self, source: Path, shape: tuple[int, ...], background: Background) -> None:
        self.source = source
        self.shape = shape
        self.background = background

    @abstractmethod
    def open(self, name: str) -> IO[bytes]:
        """The file of a picture."""

    @abstractmethod
    def where(self, name: str) -> str:
        """A picture as messages name it."""

    @abstractmethod
    def __call__(self, name: str) -> np.ndarray:
        """A picture, uint8 (H, W, C)."""

    @final
    def square(self, name: str) -> np.ndarray:
        """A picture of any size, uint8 (S, S, C): its largest centred square, resized by Lanczos."""
        channels, size, _ = self.shape
        image, _ = self.read(name)
        side = min(image.size)
        left, top = ((length - side) // 2 for length in image.size)
        square = image.crop((left, top, left + side, top + side))
        return np.array(square.resize((size, size), pillow().Image.Resampling.LANCZOS)).reshape(size, size, channels)

    @final
    def read(self, name: str) -> tuple[Image, str]:
        """A picture, upright in 8-bit grey or colour as `shape` says, and PIL's name of the mode that it had.

        Raises:
            DataError: the picture cannot be decoded, or is larger than PIL decodes.
        """
        pil = pillow()
        try:
            with self.open(name) as file, pil.Image.open(file) as image:
                mode = image.mode
                upright = _eight_bits(pil.ImageOps.exif_transpose(image), image.format)
                return self.background.behind(upright, self.where(name)).convert(MODES[self.shape[0]]), mode
        except FlowdiffError:
            raise
        except pil.Image.DecompressionBombError:
            width, height = self._size(name)
            raise DataError(
                f"{self.where(name)} is {width:,}×{height:,} pixels where at most {2 * pil.Image.MAX_IMAGE_PIXELS:,} in"
                " all are decoded: make it smaller or remove it."
            ) from None
        except Exception as error:  # a damaged file can fail anywhere in its decoder
            unknown = isinstance(error, pil.UnidentifiedImageError)
            reason = "it is not a picture of a known format" if unknown else str(error) or type(error).__name__
            raise DataError(f"{self.where(name)} cannot be decoded ({reason}): replace or remove it.") from error

    def _size(self, name: str) -> tuple[int, int]:
        """Width and height of a picture that is too large to decode, from its header."""
        pil = pillow()
        limit, pil.Image.MAX_IMAGE_PIXELS = pil.Image.MAX_IMAGE_PIXELS, None
        try:
            with self.open(name) as file, pil.Image.open(file) as image:
                size: tuple[int, int] = image.size
                return size
        finally:
            pil.Image.MAX_IMAGE_PIXELS = limit


@cache
def pillow() -> ModuleType:
    """PIL with its modules, imported on first use; its warnings of large pictures, which name no file, are off."""
    import warnings

    import PIL
    from PIL import Image, ImageColor, ImageOps  # noqa: F401, they become attributes of PIL

    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    return PIL


def _eight_bits(image: Image, file_format: str | None) -> Image:
    """A picture of 16-bit levels with 8 bits, 65535 as 255; any other picture as it is."""
    if not image.mode.startswith("I") and image.mode != "F":
        return image
    if image.mode == "F" or (image.mode == "I" and file_format != "PNG"):  # older versions of PIL read 16 bits as "I"
        raise ValueError(f"the range of its levels, of mode {image.mode}, is unknown; only 8 and 16 bits are")
    levels = np.asarray(image).astype(np.int64)
    new = pillow().Image.fromarray
    grey: Image = new(np.rint(levels / 257).clip(0, 255).astype(np.uint8))
    if "transparency" not in image.info:
        return grey
    alpha = new(np.where(levels == image.info["transparency"], 0, 255).astype(np.uint8))
    merged: Image = pillow().Image.merge("LA", (grey, alpha))
    return merged


class Listing(NamedTuple):
    """The pictures of one folder or archive."""

    names: list[str]
    labels: list[int] | None  # class of each picture; None without labels
    decode: Callable[[str], np.ndarray]  # name to uint8 (H, W, C)
    class_names: Sequence[str] = ()  # of the source, if it has any
    captions: Sequence[tuple[str, ...]] | None = None  # of each picture; None without captions


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
        of = listing.captions
        super().__init__(label[part], None if of is None else Captions(of[i] for i in part.tolist()))
        # An array of strings is one object, which loader processes share; they would copy a list page by page.
        self.names = np.array(listing.names)[part.numpy()]
        self.decode = listing.decode

    def read(self, indices: Tensor) -> Tensor:
        images = np.stack([self.decode(str(name)) for name in self.names[indices.numpy()]])  # (B, H, W, C)
        return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


class ImageFiles(DataModule):
    """Square images (channels, image_size, image_size), uint8, from `path`.

    Args:
        path: the training pictures.
        test_path: the same for the test pictures; None holds out a fixed part of `path`.
        test_fraction: share of the images of `path` that is held out as the test split, in (0, 1).
        image_size: pixels along a side, after cropping and resizing.
        channels: 1 for grey, 3 for colour.
        num_classes: number of classes; None ignores them; a configuration whose conditioner needs classes replaces it
            by `count_classes()`.
        background: colour behind transparent pixels, by its name or as #rrggbb.
        batch_size: images per batch of one process, ≥ 1.
        num_workers: loader processes, ≥ 0; they change the speed only.
        dequantize: add uniform noise of one level's width to pixels; false takes the levels' midpoints.
        flip: mirror each training image left to right with probability 1/2.
        caption_template: caption of every image with {} for the name of its class; None: those of the files.

    Attributes:
        classes_are: what tells the classes, for messages.
    """

    classes_are = "subfolders"

    def __init__(
        self,
        *,
        path: str,
        test_path: str | None,
        test_fraction: Annotated[float, Field(gt=0, lt=1)],
        image_size: PositiveInt,
        channels: Literal[1, 3],
        num_classes: PositiveInt | None,
        background: str,
        batch_size: PositiveInt,
        num_workers: NonNegativeInt,
        dequantize: bool,
        flip: bool,
        caption_template: str | None,
    ) -> None:
        super().__init__(Pixels(256, dequantize, flip), batch_size, num_workers, caption_template)
        self.shape = (channels, image_size, image_size)
        self.num_classes = num_classes
        self.path = path
        self.test_path = test_path
        self.test_fraction = test_fraction
        self.background = Background(background)

    @abstractmethod
    def listing(self, path: Path, key: str) -> Listing:
        """The pictures at `path`, the value of the config key dataset.`key`; raises DataError if none fit."""

    @final
    def load(self) -> tuple[Split, Split]:
        train = self.listing(Path(self.path).expanduser(), "path")
        self.class_names = [name.replace("_", " ") for name in train.class_names]  # as captions say them
        if self.test_path is not None:
            test = self.listing(Path(self.test_path).expanduser(), "test_path")
            if test.class_names != train.class_names:
                odd = sorted(set(test.class_names) ^ set(train.class_names))
                raise DataError(
                    f"{self.path} and {self.test_path} do not have the same class {self.classes_are}, only one of"
                    f" them has {', '.join(odd)}: rename or remove {self.classes_are} until both agree."
                )
            return LazySplit(train), LazySplit(test)
        n = len(train.names)
        if n < 2:
            raise DataError(
                f"{self.path} holds one image, so none can be held out: set dataset.test_path or give more images."
            )
        kept, tested = held_out(n, num_test=min(max(1, round(n * self.test_fraction)), n - 1))
        return LazySplit(train, kept), LazySplit(train, tested)
