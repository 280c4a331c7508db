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

    Every process opens the archive itself, because a file handle carried over a fork shares the parent's position.

    Args:
        path: the archive.
        shape: (C, H, W).
    """

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.path = path
        self.shape = shape
        self._archives: dict[int, zipfile.ZipFile] = {}  # at most one, by the id of the process that opened it

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_archives": {}}

    def archive(self) -> zipfile.ZipFile:
        """The handle of this process."""
        process = os.getpid()
        if process not in self._archives:
            self._archives = {process: zipfile.ZipFile(self.path)}
        return self._archives[process]

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

    Args:
        path: the training archive.
        test_path: the test archive; None holds out a fixed part of `path`.
        test_fraction: share of the images of `path` that is held out as the test split, in (0, 1).
        image_size: pixels along a side, as in the archive.
        channels: 1 for grey, 3 for colour.
        num_classes: number of classes; None ignores the labels, for an unconditional model.
        batch_size: images per batch of one process, ≥ 1.
        num_workers: loader processes, ≥ 0; they change the speed only.
        dequantize: add uniform noise of one level's width to pixels; false takes the levels' midpoints.
        flip: mirror each training image left to right with probability 1/2.

    Raises:
        DataError: size, channels or classes differ from the archive's: `setup` for the labels and the first picture,
            reading for every other picture.

    Source: Karras, Aittala, Aila, Laine, "Elucidating the design space of diffusion-based generative models", 2022
    (the format of its dataset_tool).
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
        """The class of each name; `setup` checks their range."""
        if labels is None:
            raise DataError(
                f"{path} has no labels where dataset.num_classes={self.num_classes} is declared: set"
                f" dataset.num_classes=null for an unconditional model."
            )
        try:
            label_of = dict(labels)
            missing = next((name for name in names if name not in label_of), None)
        except (TypeError, ValueError):
            raise DataError(f"the labels in dataset.json of {path} are not a list of [name, label] pairs.") from None
        if missing is not None:
            raise DataError(f"dataset.json of {path} has no label for {missing}: make the archive again.")
        classes = [label_of[name] for name in names]
        odd = next((c for c in classes if type(c) is not int), None)
        if odd is not None:
            raise DataError(f"dataset.json of {path} holds the label {odd!r} where a class number is expected.")
        return classes
