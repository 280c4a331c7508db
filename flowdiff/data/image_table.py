"""Tables of pictures with captions: Parquet files, and folders that the package datasets has saved."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, final

import numpy as np

from flowdiff.data.image_files import Background, ImageFiles, Listing, PictureReader
from flowdiff.errors import DataError
from flowdiff.registry import register

if TYPE_CHECKING:
    from pyarrow import ChunkedArray, Table


@final
class TableReader(PictureReader):
    """Decodes the pictures of a column to uint8 (S, S, C): the largest centred square, resized by Lanczos.

    Args:
        source: the file or folder of the table.
        shape: (C, H, W).
        background: the colour behind transparent pixels.
        column: the pictures, as bytes or as datasets keeps them, {"bytes", "path"}.
        title: the name of the column.
    """

    def __init__(
        self, source: Path, shape: tuple[int, ...], background: Background, column: ChunkedArray, title: str
    ) -> None:
        super().__init__(source, shape, background)
        self.column = column
        self.title = title

    def open(self, name: str) -> IO[bytes]:
        cell = self.column[int(name)].as_py()
        content, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
        if isinstance(content, bytes):
            return io.BytesIO(content)
        if isinstance(path, str):
            folder = self.source if self.source.is_dir() else self.source.parent
            return (folder / path).open("rb")
        raise ValueError(f"the column {self.title} holds no picture")

    def where(self, name: str) -> str:
        return f"row {name} of {self.source}"

    def __call__(self, name: str) -> np.ndarray:
        return self.square(name)


@final
@register("dataset", "image_table")
class ImageTable(ImageFiles):
    """Pictures with captions in the rows of Parquet files or of a folder of datasets' save_to_disk, made square.

    A picture is a cell of bytes, or {"bytes", "path"} as the package datasets keeps it; it is cropped to a square and
    resized to image_size. A caption is a text or a list of texts. Files of save_to_disk are read where they lie;
    Parquet files are held in memory, their pictures compressed.

    Args:
        path: a Parquet file, a folder of them, or a folder of save_to_disk with one split.
        image_column: column of the pictures.
        caption_column: column of the captions; None reads none.
        label_column: column of the class numbers, which is read if num_classes is given.
        **settings: those of ImageFiles.

    Raises:
        ConfigurationError: background is not a colour.
        DataError: `setup`: the table or the package pyarrow is missing, a file is damaged, a column is missing, or a
            picture has no caption or no class.

    Source: the formats of the package datasets; the package pyarrow reads them.
    """

    name = "image_table"
    has_captions = True  # if a column has them
    classes_are = "names"

    def __init__(
        self,
        *,
        image_column: str,
        caption_column: str | None,
        label_column: str,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.image_column = image_column
        self.caption_column = caption_column
        self.label_column = label_column

    def listing(self, path: Path, key: str) -> Listing:
        table = _table(path, key)
        pictures = self._column(table, path, "image_column", self.image_column)
        names = [str(row) for row in range(len(pictures))]
        if not names:
            raise DataError(f"dataset.{key}={path} has no rows: give a table of pictures.")
        decode = TableReader(path, self.shape, self.background, pictures, self.image_column)
        labels = None if self.num_classes is None else self._labels(table, path)
        captions = None
        if self.caption_column is not None and self.caption_template is None:
            column = self._column(table, path, "caption_column", self.caption_column)
            captions = [_texts(cell, decode.where(str(row))) for row, cell in enumerate(column.to_pylist())]
        return Listing(names, labels, decode, self._class_names(table), captions)

    def count_classes(self) -> int:
        """num_classes, or the number of the classes' names in `path`, or one more than the largest class number.

        Raises:
            DataError: the table cannot be read, or a picture has no class.
        """
        if self.num_classes is not None:
            return self.num_classes
        path = Path(self.path).expanduser()
        table = _table(path, "path")
        return len(self._class_names(table)) or max(self._labels(table, path)) + 1

    def _column(self, table: Table, path: Path, key: str, title: str) -> ChunkedArray:
        if title not in table.column_names:
            raise DataError(
                f"{path} has no column {title} where dataset.{key}={title} is declared: its columns are "
                f"{', '.join(table.column_names)}."
            )
        return table.column(title)

    def _labels(self, table: Table, path: Path) -> list[int]:
        """The class of each picture; `setup` checks their range."""
        labels: list[Any] = self._column(table, path, "label_column", self.label_column).to_pylist()
        odd = next((row for row, label in enumerate(labels) if type(label) is not int), None)
        if odd is not None:
            raise DataError(f"row {odd} of {path} has the label {labels[odd]!r} where a class number is expected.")
        return labels

    def _class_names(self, table: Table) -> Sequence[str]:
        """The names of the classes, which datasets keeps beside the columns; empty without them."""
        kept = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
        feature = kept.get("info", {}).get("features", {}).get(self.label_column, {})
        return feature.get("names", ()) if isinstance(feature, dict) else ()


def _table(path: Path, key: str) -> Table:
    """A Parquet file, a folder of them, or a folder of save_to_disk."""
    if not path.exists():
        raise DataError(f"dataset.{key}={path} does not exist: set dataset.{key} to a Parquet file or a folder.")
    try:
        import pyarrow
    except ImportError as error:
        raise DataError("dataset=image_table needs the package pyarrow: pip install 'flowdiff[data]'.") from error
    files = [path] if path.is_file() else sorted(path.glob("*.arrow")) or sorted(path.glob("*.parquet"))
    if not files:
        inside = " or ".join(str(folder) for folder in sorted(path.iterdir()) if any(folder.glob("*.arrow")))
        remedy = f"name one of its splits, {inside}" if inside else "give a Parquet file, or a folder of save_to_disk"
        raise DataError(f"dataset.{key}={path} holds no .arrow and no .parquet files: {remedy}.")
    tables = []
    for file in files:
        try:
            tables.append(_arrow(file) if file.suffix == ".arrow" else _parquet(file))
        except (OSError, pyarrow.ArrowException) as error:
            reason = str(error).splitlines()[0]
            raise DataError(f"{file} cannot be read ({reason}): copy or download it again.") from error
    try:
        return pyarrow.concat_tables(tables)
    except pyarrow.ArrowException as error:
        raise DataError(
            f"the files of {path} do not have the same columns: keep each table in its own folder."
        ) from error


def _parquet(file: Path) -> Table:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(file)


def _arrow(file: Path) -> Table:
    import pyarrow

    return pyarrow.ipc.open_stream(pyarrow.memory_map(str(file))).read_all()


def _texts(cell: Any, where: str) -> tuple[str, ...]:
    """The captions of a cell."""
    texts = cell if isinstance(cell, list) else [cell]
    found = tuple(text.strip() for text in texts if isinstance(text, str) and text.strip())
    if not found or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{where} has the caption {cell!r}: write a text or a list of texts, or remove the row.")
    return found
