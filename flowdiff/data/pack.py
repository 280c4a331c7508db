"""Packing a folder of pictures into one zip, as EDM's dataset_tool writes it and dataset=image_zip reads it."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from flowdiff.data.image_files import Listing, pillow
from flowdiff.data.image_folder import ImageFolder
from flowdiff.data.image_zip import LABELS
from flowdiff.errors import ConfigurationError, DataError
from flowdiff.registry import create
from flowdiff.runs.files import whole


class Packed(NamedTuple):
    """What an archive holds.

    Args:
        pictures: their number.
        classes: number of classes, in the order of the subfolders' names; None without labels.
        captioned: whether every picture has captions.
    """

    pictures: int
    classes: int | None
    captioned: bool


def pack(
    folder: Path,
    archive: Path,
    *,
    image_size: int,
    channels: Literal[1, 3] = 3,
    labels: bool = True,
    background: str = "white",
    progress: Callable[[int, int], None] | None = None,
) -> Packed:
    """Write the pictures of a folder into a zip: centred squares of one size, with classes and captions.

    The pictures are 00000/img00000000.png, 00000/img00000001.png, …, in the order of their names in the folder, as
    uncompressed as a PNG can be, because decoding is what costs. dataset.json holds their classes and captions. The
    pixels are those that dataset=image_folder reads, and so are the training and test splits. The archive appears when
    it is complete.

    Args:
        folder: what dataset=image_folder reads: a subfolder for each class, or pictures without classes.
        archive: the new zip.
        image_size: pixels along a side, ≥ 1.
        channels: 1 for grey, 3 for colour.
        labels: whether the subfolders are classes.
        background: colour behind transparent pixels.
        progress: called with (pictures written, pictures in all).

    Raises:
        ConfigurationError: the archive exists, its folder does not, or a setting is not allowed.
        DataError: the folder holds no pictures, one of them cannot be decoded, or lies in no subfolder.
    """
    if archive.exists() or archive.suffix != ".zip" or not archive.absolute().parent.is_dir():
        raise ConfigurationError(f"{archive} cannot be written: name a new file in a folder that exists, ending in .zip.")
    listing = _listing(folder, image_size, channels, labels, background)
    named: dict[str, list[list[object]]] = {"labels": [], "captions": []}
    with whole(archive) as path, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for i, name in enumerate(listing.names):
            member = f"{i:08d}"[:5] + f"/img{i:08d}.png"
            pixels = listing.decode(name)
            picture = pillow().Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
            png = io.BytesIO()
            picture.save(png, format="png", compress_level=0, optimize=False)
            file.writestr(member, png.getvalue())
            if listing.labels is not None:
                named["labels"].append([member, listing.labels[i]])
            if listing.captions is not None:
                named["captions"].append([member, list(listing.captions[i])])
            if progress is not None:
                progress(i + 1, len(listing.names))
        about: dict[str, object] = {"labels": named["labels"] or None}
        if named["captions"]:
            about["captions"] = named["captions"]
        file.writestr(LABELS, json.dumps(about, ensure_ascii=False))
    classes = None if listing.labels is None else len(listing.class_names)
    return Packed(len(listing.names), classes, listing.captions is not None)


def _listing(folder: Path, image_size: int, channels: int, labels: bool, background: str) -> Listing:
    """The pictures of the folder, as dataset=image_folder finds and decodes them."""
    settings = {"path": str(folder), "image_size": image_size, "channels": channels, "background": background}

    def reading(num_classes: int | None) -> ImageFolder:
        found: ImageFolder = create("dataset", "image_folder", **settings, num_classes=num_classes)
        return found

    if not labels:
        return reading(None).listing(folder, "path")
    try:
        count = reading(None).count_classes()
    except DataError as error:
        raise DataError(f"{str(error).rstrip('.')}; or pack it without classes: --no-labels.") from error
    return reading(count).listing(folder, "path")
