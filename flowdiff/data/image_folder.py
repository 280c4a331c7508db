"""A folder of pictures of any size, with one subfolder per class or without classes."""

from __future__ import annotations

from pathlib import Path
from typing import final

import numpy as np

from flowdiff.data.image_files import EXTENSIONS, MODES, ImageFiles, Listing
from flowdiff.errors import DataError
from flowdiff.registry import register


@final
class FileReader:
    """Decodes a file below `root` to uint8 (S, S, C): its largest centred square, resized by Lanczos.

    Args:
        root: folder that the names are relative to.
        shape: (C, S, S).
    """

    def __init__(self, root: Path, shape: tuple[int, ...]) -> None:
        self.root = root
        self.shape = shape

    def __call__(self, name: str) -> np.ndarray:
        from PIL import Image, ImageOps

        channels, size, _ = self.shape
        try:
            with Image.open(self.root / name) as image:
                upright = ImageOps.exif_transpose(image).convert(MODES[channels])
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"{self.root / name} cannot be decoded ({error}): replace or remove it.") from error
        side = min(upright.size)
        left, top = ((length - side) // 2 for length in upright.size)
        square = upright.crop((left, top, left + side, top + side))
        return np.array(square.resize((size, size), Image.Resampling.LANCZOS)).reshape(size, size, channels)


@final
@register("dataset", "image_folder")
class ImageFolder(ImageFiles):
    """Pictures below a folder, cropped to a square and resized to image_size.

    Args:
        path: folder of the training pictures.
        test_path: folder of the test pictures; None holds out a fixed part of `path`.
        test_fraction: share of the images of `path` that is held out as the test split, in (0, 1).
        image_size: pixels along a side, after cropping and resizing.
        channels: 1 for grey, 3 for colour.
        num_classes: number K of subfolders, whose sorted order numbers the classes; a test folder needs the same ones.
            None takes every picture at any depth, for an unconditional model.
        batch_size: images per batch of one process, ≥ 1.
        num_workers: loader processes, ≥ 0; they change the speed only.
        dequantize: add uniform noise of one level's width to pixels; false takes the levels' midpoints.
        flip: mirror each training image left to right with probability 1/2.

    Raises:
        DataError: `setup`: a folder is missing, has no pictures, or has other subfolders than declared.
    """

    name = "image_folder"

    def listing(self, path: Path, key: str) -> Listing:
        if not path.is_dir():
            raise DataError(f"dataset.{key}={path} is not a folder: set dataset.{key} to a folder of pictures.")
        files = (file for file in path.rglob("*") if file.suffix.lower() in EXTENSIONS and file.is_file())
        names = sorted(file.relative_to(path).as_posix() for file in files)
        if not names:
            raise DataError(f"dataset.{key}={path} holds no pictures ({', '.join(sorted(EXTENSIONS))}).")
        decode = FileReader(path, self.shape)
        if self.num_classes is None:
            return Listing(names, None, decode)
        labels, class_names = self._classes(path, key, names)
        return Listing(names, labels, decode, class_names)

    def _classes(self, path: Path, key: str, names: list[str]) -> tuple[list[int], list[str]]:
        loose = next((name for name in names if "/" not in name), None)
        if loose is not None:
            raise DataError(
                f"{path / loose} lies in no class subfolder where"
                f" dataset.num_classes={self.num_classes} is declared: move it, or set"
                f" dataset.num_classes=null for an unconditional model."
            )
        tops = [name.split("/")[0] for name in names]
        folders = sorted(set(tops))
        if len(folders) != self.num_classes:
            raise DataError(
                f"dataset.{key}={path} has {len(folders)} class subfolders with pictures where"
                f" dataset.num_classes={self.num_classes} is declared: set it to {len(folders)}, or to"
                f" null for an unconditional model."
            )
        number = {folder: i for i, folder in enumerate(folders)}
        return [number[top] for top in tops], folders
