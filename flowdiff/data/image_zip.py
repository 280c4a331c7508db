"""A zip archive of equally large pictures with their labels, as EDM's dataset_tool writes it."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any, final

import numpy as np

from flowdiff.data.image_files import EXTENSIONS, MODES, ImageFiles, Listing
from flowdiff.errors import DataError
from flowdiff.registry import register


@final
class ZipReader:
    """Decodes the members of one archive to uint8 (H, W, C).

    Every process opens the archive for itself: a file handle carried over a fork shares the parent's
    position.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int]) -> None:
        self.path = path
        self.shape = shape
        self._archive: zipfile.ZipFile | None = None
        self._owner: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_archive": None, "_owner": None}

    def archive(self) -> zipfile.ZipFile:
        """This process's handle."""
        if self._owner != os.getpid():
            self._archive, self._owner = zipfile.ZipFile(self.path), os.getpid()
        return self._archive

    def __call__(self, name: str) -> np.ndarray:
        from PIL import Image

        channels, height, width = self.shape
        try:
            with self.archive().open(name) as file, Image.open(file) as image:
                mode, size = image.mode, image.size
                pixels = np.array(image)
        except (OSError, SyntaxError, ValueError, zipfile.BadZipFile) as error:
            raise DataError(f"{name} in {self.path} cannot be decoded ({error}): make the archive again.") from error
        if mode != MODES[channels] or size != (width, height):
            raise DataError(
                f"{name} in {self.path} is {size[0]}×{size[1]} pixels of mode {mode} where"
                f" dataset.image_size={width} and dataset.channels={channels} (mode {MODES[channels]}) are"
                f" declared: set both to what the archive holds."
            )
        return pixels.reshape(height, width, channels)


@final
@register("dataset", "image_zip")
class ImageZip(ImageFiles):
    """Pictures in a zip beside `dataset.json`, {"labels": [[name, label], …]} or {"labels": null}.

    Format: Karras, Aittala, Aila, Laine, "Elucidating the design space of diffusion-based generative models",
    2022 (its dataset_tool). The declared size, channels and classes are held against the archive: DataError
    where they differ, the labels and the first picture at `setup`, the other pictures when they are read.
    """

    name = "image_zip"

    def listing(self, path: Path, key: str) -> Listing:
        if not path.is_file():
            raise DataError(f"dataset.{key}={path} is not a file: set dataset.{key} to an EDM-format zip archive.")
        reader = ZipReader(path, self.shape)
        try:
            members = reader.archive().namelist()
            names = sorted(name for name in members if PurePosixPath(name).suffix.lower() in EXTENSIONS)
            labels = None
            if "dataset.json" in members:
                labels = json.loads(reader.archive().read("dataset.json")).get("labels")
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"dataset.{key}={path} is not a readable zip archive ({error}).") from error
        except (ValueError, AttributeError) as error:
            raise DataError(f'dataset.json in {path} is not a JSON object with the key "labels" ({error}).') from error
        if not names:
            raise DataError(f"dataset.{key}={path} holds no pictures: give an archive of PNG files.")
        classes = None if self.num_classes is None else self._classes(path, names, labels)
        return Listing(names, classes, reader)

    def _classes(self, path: Path, names: list[str], labels: Any) -> list[int]:
        """The class of each name; their range is checked with that of every other data set."""
        if labels is None:
            raise DataError(
                f"{path} has no labels where dataset.num_classes={self.num_classes} is declared: set"
                f" dataset.num_classes=null for an unconditional model."
            )
        try:
            of = dict(labels)
            missing = next((name for name in names if name not in of), None)
        except (TypeError, ValueError):
            raise DataError(f"the labels in dataset.json of {path} are not a list of [name, label] pairs.") from None
        if missing is not None:
            raise DataError(f"dataset.json of {path} has no label for {missing}: make the archive again.")
        classes = [of[name] for name in names]
        odd = next((c for c in classes if type(c) is not int), None)
        if odd is not None:
            raise DataError(f"dataset.json of {path} holds the label {odd!r} where a class number is expected.")
        return classes
