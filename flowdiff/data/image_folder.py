"""A folder of pictures of any size: one subfolder per class, or one flat heap."""

from __future__ import annotations

from pathlib import Path
from typing import final

import numpy as np

from flowdiff.data.image_files import EXTENSIONS, MODES, ImageFiles, Listing
from flowdiff.errors import DataError
from flowdiff.registry import register


@final
class FileReader:
    """Decodes a file below `root` to uint8 (S, S, C): its largest centred square, resized by Lanczos."""

    def __init__(self, root: Path, shape: tuple[int, int, int]) -> None:
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
    """Pictures below a folder, cropped to a square and resized to image_size, grey or colour as declared.

    With num_classes=K the folder has K subfolders, whose sorted order numbers the classes, and a test
    folder has the same; with num_classes=None every picture at any depth counts.
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
        tops = [name.split("/")[0] if "/" in name else None for name in names]
        if None in tops:
            raise DataError(
                f"{path / names[tops.index(None)]} lies in no class subfolder where"
                f" dataset.num_classes={self.num_classes} is declared: move it, or set"
                f" dataset.num_classes=null for an unconditional model."
            )
        folders = sorted(set(tops))
        if len(folders) != self.num_classes:
            raise DataError(
                f"dataset.{key}={path} has {len(folders)} class subfolders with pictures where"
                f" dataset.num_classes={self.num_classes} is declared: set it to {len(folders)}, or to"
                f" null for an unconditional model."
            )
        number = {folder: i for i, folder in enumerate(folders)}
        return [number[top] for top in tops], folders
