"""A folder of pictures of any size, with one subfolder per class or without classes."""

from __future__ import annotations

from pathlib import Path
from typing import IO, final

import numpy as np

from flowdiff.data.caption_files import captions_in
from flowdiff.data.image_files import EXTENSIONS, ImageFiles, Listing, PictureReader, is_unseen, pictures_below
from flowdiff.errors import DataError
from flowdiff.registry import register


@final
class FileReader(PictureReader):
    """Decodes a file below a folder to uint8 (S, S, C): its largest centred square, resized by Lanczos."""

    def open(self, name: str) -> IO[bytes]:
        return (self.source / name).open("rb")

    def where(self, name: str) -> str:
        return str(self.source / name)

    def __call__(self, name: str) -> np.ndarray:
        return self.square(name)


@final
@register("dataset", "image_folder")
class ImageFolder(ImageFiles):
    """Pictures below a folder, cropped to a square and resized to image_size.

    Captions are read from metadata.csv, metadata.jsonl or metadata.parquet with the columns file_name and text, or from
    a.txt beside a.jpg with a caption in each line. Links to folders are followed. Hidden files and folders, and those
    that a system leaves behind, are ignored.

    Args:
        path: folder of the training pictures.
        num_classes: number K of subfolders, whose sorted order numbers the classes; a test folder needs the same ones.
            None takes every picture at any depth, without classes; a configuration whose conditioner needs classes
            replaces it by `count_classes()`.

    Raises:
        ConfigurationError: background is not a colour.
        DataError: `setup`: a folder is missing, has no pictures, has other subfolders than declared, or captions of
            only some of its pictures.
    """

    name = "image_folder"
    has_captions = True  # if the folder has some

    def listing(self, path: Path, key: str) -> Listing:
        _require_folder(path, key)
        names = sorted(pictures_below(path))
        if not names:
            raise DataError(f"dataset.{key}={path} holds no pictures ({', '.join(sorted(EXTENSIONS))}).")
        decode = FileReader(path, self.shape, self.background)
        captions = captions_in(path, names) if self.caption_template is None else None
        if self.num_classes is None:
            return Listing(names, None, decode, captions=captions)
        labels, class_names = self._classes(path, key, names)
        return Listing(names, labels, decode, class_names, captions)

    def count_classes(self) -> int:
        """num_classes, or the number of subfolders of `path` that hold pictures; reads no picture.

        Raises:
            DataError: the folder is missing, has no subfolders with pictures, or holds a picture outside of them.
        """
        if self.num_classes is not None:
            return self.num_classes
        path = Path(self.path).expanduser()
        _require_folder(path, "path")
        subfolders = [entry for entry in path.iterdir() if entry.is_dir() and not is_unseen(entry.name)]
        loose = next((name for name in pictures_below(path, subfolders=False)), None)
        if loose is not None:
            raise DataError(
                f"{path / loose} lies in no class subfolder, so the classes cannot be counted: move it into one, or set"
                " conditioner=none for an unconditional model."
            )
        count = sum(next(pictures_below(folder), None) is not None for folder in subfolders)
        if not count:
            raise DataError(
                f"dataset.path={path} has no class subfolders with pictures: make one for each class, or set"
                " conditioner=none for an unconditional model."
            )
        return count

    def _classes(self, path: Path, key: str, names: list[str]) -> tuple[list[int], list[str]]:
        loose = next((name for name in names if "/" not in name), None)
        if loose is not None:
            raise DataError(
                f"{path / loose} lies in no class subfolder where"
                f" dataset.num_classes={self.num_classes} is declared: move it, or set"
                f" dataset.num_classes=null conditioner=none for an unconditional model."
            )
        tops = [name.split("/")[0] for name in names]
        folders = sorted(set(tops))
        if len(folders) != self.num_classes:
            raise DataError(
                f"dataset.{key}={path} has {len(folders)} class subfolders with pictures where"
                f" dataset.num_classes={self.num_classes} is declared: set it to {len(folders)}, or to"
                f" null, which counts them."
            )
        number = {folder: i for i, folder in enumerate(folders)}
        return [number[top] for top in tops], folders


def _require_folder(path: Path, key: str) -> None:
    if not path.is_dir():
        raise DataError(f"dataset.{key}={path} is not a folder: set dataset.{key} to a folder of pictures.")
