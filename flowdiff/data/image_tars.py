"""Tar files of pictures with their captions, as the package webdataset and img2dataset write them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, final

import numpy as np

from flowdiff.data.image_files import EXTENSIONS, Background, ImageFiles, Listing, PictureReader, is_unseen
from flowdiff.errors import DataError
from flowdiff.registry import register

CAPTION_KEYS = ("caption", "text")  # of a .json file, the first one that it has
BLOCK = 512  # bytes of a block of a tar file
TEXTS = (".txt", ".json", ".cls")


class Member(NamedTuple):
    """Where the content of a file lies: its tar, its first byte in it, its number of bytes."""

    tar: Path
    start: int
    size: int

    def content(self) -> bytes:
        with self.tar.open("rb") as file:
            file.seek(self.start)
            return file.read(self.size)


class Sample(NamedTuple):
    """A picture with the files of the same key, {ending: file}."""

    picture: str
    beside: dict[str, Member]


@final
class TarReader(PictureReader):
    """Decodes members of tar files to uint8 (S, S, C): the largest centred square, resized by Lanczos.

    Args:
        source: the tar file or the folder.
        shape: (C, H, W).
        background: the colour behind transparent pixels.
        members: the pictures by their names.
    """

    def __init__(
        self, source: Path, shape: tuple[int, ...], background: Background, members: dict[str, Member]
    ) -> None:
        super().__init__(source, shape, background)
        self.members = members

    def open(self, name: str) -> IO[bytes]:
        return io.BytesIO(self.members[name].content())

    def where(self, name: str) -> str:
        tar = self.members[name].tar
        return f"{name.removeprefix(f'{tar.name}/')} in {tar}"

    def __call__(self, name: str) -> np.ndarray:
        return self.square(name)


@final
@register("dataset", "image_tars")
class ImageTars(ImageFiles):
    """Pictures with captions in tar files (webdataset), cropped to a square and resized to image_size.

    Files of the same name up to its first dot are a sample: key.jpg (or .jpeg, .png, .webp, .bmp) beside key.txt with a
    caption in each line, or key.json with the caption, or a list of captions, under "caption" or "text"; key.cls holds
    a class number. The tars are not streamed: `setup` reads their headers and texts once, and a sample is then read at
    its position in its tar, so that training shuffles all samples and resumes at any step. Compressed tars have no such
    positions, and are refused.

    Args:
        path: the training tar, or a folder of tars.
        caption_template: caption of every image with {} for the number of its class; None: those of the files.

    Raises:
        ConfigurationError: background is not a colour.
        DataError: `setup`: a tar is missing, cut short or compressed, has no pictures, captions of only some of them, or
            a text that cannot be read.

    Source: the format of the package webdataset.
    """

    name = "image_tars"
    has_captions = True  # if the tars have some

    def listing(self, path: Path, key: str) -> Listing:
        members, samples = _indexed(path, key)
        decode = TarReader(path, self.shape, self.background, members)
        names = [sample.picture for sample in samples]
        labels = None if self.num_classes is None else [_label(sample, decode) for sample in samples]
        texts = [_captions(sample) for sample in samples] if self.caption_template is None else []
        if not any(texts):
            return Listing(names, labels, decode)
        bare = next((name for name, found in zip(names, texts, strict=True) if not found), None)
        if bare is not None:
            raise DataError(
                f"{decode.where(bare)} has no caption: add a .txt or .json file of the same name, or remove the picture."
            )
        return Listing(names, labels, decode, captions=texts)

    def count_classes(self) -> int:
        """num_classes, or one more than the largest class number of `path`.

        Raises:
            DataError: a tar cannot be read, or a picture has no class.
        """
        if self.num_classes is not None:
            return self.num_classes
        path = Path(self.path).expanduser()
        members, samples = _indexed(path, "path")
        decode = TarReader(path, self.shape, self.background, members)
        return max(_label(sample, decode) for sample in samples) + 1


def _indexed(path: Path, key: str) -> tuple[dict[str, Member], list[Sample]]:
    """The pictures of one tar or of a folder of tars by their names, and their samples in the order of the names."""
    if not path.exists():
        raise DataError(f"dataset.{key}={path} does not exist: set dataset.{key} to a tar file or a folder of them.")
    tars = sorted(path.rglob("*.tar")) if path.is_dir() else [path]
    pictures: dict[str, Member] = {}
    texts: dict[str, dict[str, Member]] = {}
    for tar in tars:
        inside = str(tar.relative_to(path)) if path.is_dir() else tar.name
        for name, member in _members(tar):
            ending = PurePosixPath(name).suffix.lower()
            if ending in EXTENSIONS:
                pictures[f"{inside}/{name}"] = member
            elif ending in TEXTS:
                texts.setdefault(_key(f"{inside}/{name}"), {})[ending] = member
    if not pictures:
        raise DataError(f"dataset.{key}={path} holds no pictures ({', '.join(sorted(EXTENSIONS))}) in tar files.")
    return pictures, [Sample(name, texts.get(_key(name), {})) for name in sorted(pictures)]


def _key(name: str) -> str:
    """A name up to the first dot behind its folders."""
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.partition('.')[0]}"


def _members(tar: Path) -> Iterator[tuple[str, Member]]:
    """The files of a tar by their names; raises DataError for one that is cut short."""
    end = 0
    try:
        with tarfile.open(tar, "r:") as archive:
            for info in archive:
                end = info.offset_data + -(-info.size // BLOCK) * BLOCK if info.isfile() else info.offset_data
                if info.isfile() and not any(map(is_unseen, PurePosixPath(info.name).parts)):
                    yield info.name, Member(tar, info.offset_data, info.size)
    except tarfile.ReadError as error:
        if str(error) in ("unexpected end of data", "truncated header"):
            raise _cut_short(tar) from error
        raise DataError(f"{tar} is not an uncompressed tar file ({error}): unpack it, or write it again.") from error
    except OSError as error:
        raise DataError(f"{tar} cannot be read ({error.strerror}): allow it, or remove it.") from error
    # A tar ends with blocks of zeros. One that was cut between two files looks complete but for them.
    if Member(tar, end, BLOCK).content() != bytes(BLOCK):
        raise _cut_short(tar)


def _cut_short(tar: Path) -> DataError:
    return DataError(f"{tar} is cut short, after {tar.stat().st_size:,} bytes: copy or download it again.")


def _captions(sample: Sample) -> tuple[str, ...]:
    """The captions of a sample, of .txt or else of .json; empty if it has none."""
    if ".txt" in sample.beside:
        lines = _text(sample, ".txt").splitlines()
        return tuple(line.strip() for line in lines if line.strip())
    if ".json" not in sample.beside:
        return ()
    where = _beside(sample, ".json")
    try:
        said = json.loads(_text(sample, ".json"))
    except json.JSONDecodeError as error:
        raise DataError(f"line {error.lineno} of {where} is not JSON ({error.msg}): correct or remove it.") from error
    if not isinstance(said, dict):
        raise DataError(f"{where} is not a JSON object: write {{…}} with the key {CAPTION_KEYS[0]}.")
    given: Any = next((said[key] for key in CAPTION_KEYS if said.get(key)), [])
    texts = given if isinstance(given, list) else [given]
    if not all(isinstance(text, str) for text in texts):
        raise DataError(f"{where} has the caption {given!r}: write a text or a list of texts.")
    return tuple(text.strip() for text in texts if text.strip())


def _label(sample: Sample, decode: TarReader) -> int:
    """The class of a sample; `setup` checks its range."""
    if ".cls" not in sample.beside:
        raise DataError(
            f"{decode.where(sample.picture)} has no class: add a .cls file of the same name with a number, or set"
            " dataset.num_classes=null conditioner=none."
        )
    text = _text(sample, ".cls").strip()
    if not text.isdecimal():
        raise DataError(f"{_beside(sample, '.cls')} holds {text!r} where a class number is expected.")
    return int(text)


def _text(sample: Sample, ending: str) -> str:
    try:
        return sample.beside[ending].content().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{_beside(sample, ending)} is not text in UTF-8: write it again.") from error


def _beside(sample: Sample, ending: str) -> str:
    """The file with an ending beside a picture, as messages name it."""
    tar = sample.beside[ending].tar
    return f"{PurePosixPath(sample.picture).name.partition('.')[0]}{ending} in {tar}"
