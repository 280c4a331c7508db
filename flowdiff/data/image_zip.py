"""A zip archive of equally large pictures with their labels, as EDM's dataset_tool writes it."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, final

import numpy as np

from flowdiff.data.image_files import (
    GREY_MODES,
    MODES,
    Background,
    ImageFiles,
    Listing,
    PictureReader,
    is_picture,
    is_unseen,
)
from flowdiff.errors import DataError
from flowdiff.registry import register

LABELS = "dataset.json"


@final
class ZipReader(PictureReader):
    """Decodes the members of one archive to uint8 (H, W, C).

    Every process opens the archive itself, because a file handle carried over a fork shares the parent's position.
    """

    def __init__(self, source: Path, shape: tuple[int, ...], background: Background) -> None:
        super().__init__(source, shape, background)
        self._archives: dict[int, zipfile.ZipFile] = {}  # at most one, by the id of the process that opened it

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_archives": {}}

    def archive(self) -> zipfile.ZipFile:
        """The handle of this process."""
        process = os.getpid()
        if process not in self._archives:
            self._archives = {process: zipfile.ZipFile(self.source)}
        return self._archives[process]

    def open(self, name: str) -> IO[bytes]:
        return self.archive().open(name)

    def where(self, name: str) -> str:
        return f"{name} in {self.source}"

    def __call__(self, name: str) -> np.ndarray:
        channels, height, width = self.shape
        image, mode = self.read(name)
        pixels = np.array(image).reshape(image.height, image.width, channels)
        as_grey = mode == "P" or (mode in GREY_MODES) == (channels == 1)  # a palette may be grey or coloured
        if image.size != (width, height) or not as_grey:
            raise DataError(
                f"{self.where(name)} is {image.width}×{image.height} pixels of mode {mode} where"
                f" dataset.image_size={width} and dataset.channels={channels} (mode {MODES[channels]}) are"
                f" declared: set both to what every picture of the archive has."
            )
        return pixels


class Content(NamedTuple):
    """What an archive holds: names of its pictures, sorted; what dataset.json says of them; the folder of that."""

    names: list[str]
    labels: Any
    captions: Any
    folder: str


@final
@register("dataset", "image_zip")
class ImageZip(ImageFiles):
    """Pictures in a zip beside `dataset.json`, {"labels": [[name, label], …]} or {"labels": null}.

    dataset.json may have captions, too: {"captions": [[name, text], …]}, with a list of texts for several captions.
    dataset.json may lie in a folder of the archive; its names are relative to that folder. Hidden files and folders,
    and those that a system leaves behind, are ignored.

    Args:
        path: the training archive.
        image_size: pixels along a side, as in the archive.

    Raises:
        ConfigurationError: background is not a colour.
        DataError: size, channels or classes differ from the archive's: `setup` for the labels and the first picture,
            reading for every other picture.

    Source: Karras, Aittala, Aila, Laine, "Elucidating the design space of diffusion-based generative models", 2022
    (the format of its dataset_tool).
    """

    name = "image_zip"
    has_captions = True  # if the archive has some

    def listing(self, path: Path, key: str) -> Listing:
        reader = self._reader(path, key)
        content = self._content(reader, key)
        classes = None if self.num_classes is None else self._classes(path, content)
        captions = _captions(path, content) if self.caption_template is None else None
        return Listing(content.names, classes, reader, captions=captions)

    def count_classes(self) -> int:
        """num_classes, or one more than the largest label of `path`; reads no picture.

        Raises:
            DataError: the archive cannot be read, or does not have a label for every picture.
        """
        if self.num_classes is not None:
            return self.num_classes
        reader = self._reader(Path(self.path).expanduser(), "path")
        return max(self._classes(reader.source, self._content(reader, "path"))) + 1

    def _reader(self, path: Path, key: str) -> ZipReader:
        if not path.is_file():
            raise DataError(f"dataset.{key}={path} is not a file: set dataset.{key} to an EDM-format zip archive.")
        return ZipReader(path, self.shape, self.background)

    def _content(self, reader: ZipReader, key: str) -> Content:
        path, said = reader.source, {}
        try:
            members = reader.archive().namelist()
            names = sorted(filter(is_picture, members))
            folder = _folder_of_labels(members)
            if folder is not None:
                text = reader.archive().read(f"{folder}{LABELS}")
                said = {key: json.loads(text).get(key) for key in ("labels", "captions")}
        except (OSError, RuntimeError, EOFError, zlib.error, zipfile.BadZipFile) as error:
            raise DataError(f"dataset.{key}={path} is not a readable zip archive ({error}).") from error
        except (ValueError, AttributeError) as error:
            raise DataError(f'{LABELS} in {path} is not a JSON object with the key "labels" ({error}).') from error
        if not names:
            raise DataError(f"dataset.{key}={path} holds no pictures: give an archive of PNG files.")
        return Content(names, said.get("labels"), said.get("captions"), folder or "")

    def _classes(self, path: Path, content: Content) -> list[int]:
        """The class of each picture; `setup` checks their range."""
        if content.labels is None:
            declared = "" if self.num_classes is None else f" where dataset.num_classes={self.num_classes} is declared"
            raise DataError(
                f"{path} has no labels{declared}: set dataset.num_classes=null conditioner=none for an unconditional"
                " model."
            )
        classes = _of_each(path, content, "label", content.labels)
        odd = next((c for c in classes if type(c) is not int), None)
        if odd is not None:
            raise DataError(f"{LABELS} of {path} holds the label {odd!r} where a class number is expected.")
        return classes


def _of_each(path: Path, content: Content, what: str, pairs: Any) -> list[Any]:
    """The label or the caption of each picture from the [name, value] pairs of dataset.json."""
    try:
        value_of = {f"{content.folder}{name}": value for name, value in dict(pairs).items()}
        missing = next((name for name in content.names if name not in value_of), None)
    except (TypeError, ValueError):
        raise DataError(f"the {what}s in {LABELS} of {path} are not a list of [name, {what}] pairs.") from None
    if missing is not None:
        raise DataError(f"{LABELS} of {path} has no {what} for {missing}: make the archive again.")
    return [value_of[name] for name in content.names]


def _captions(path: Path, content: Content) -> list[tuple[str, ...]] | None:
    """The captions of each picture; None if dataset.json has none."""
    if content.captions is None:
        return None
    found = []
    for name, given in zip(content.names, _of_each(path, content, "caption", content.captions), strict=True):
        texts = given if isinstance(given, list) else [given]
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise DataError(
                f"{LABELS} of {path} has the caption {given!r} for {name}: write a text or a list of texts."
            )
        found.append(tuple(text.strip() for text in texts))
    return found


def _folder_of_labels(members: list[str]) -> str | None:
    """The folder, with its slash, of the dataset.json nearest to the top of an archive; None without one."""
    found = [PurePosixPath(name) for name in members if PurePosixPath(name).name == LABELS]
    seen = [path for path in found if not any(map(is_unseen, path.parts))]
    if not seen:
        return None
    nearest = min(seen, key=lambda path: len(path.parts))
    return str(nearest).removesuffix(LABELS)
