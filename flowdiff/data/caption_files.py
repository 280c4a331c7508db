"""Captions of a folder of pictures, in the files that people keep them in.

    metadata.csv, metadata.jsonl or metadata.parquet    one row a caption: file_name, text, and any other columns
    a.jpg beside a.txt                                  one line a caption

The first is the convention of `imagefolder` in the package datasets. A picture in several rows has several captions.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from flowdiff.errors import DataError

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
FILE, TEXT = "file_name", "text"


def captions_in(folder: Path, names: Sequence[str]) -> list[tuple[str, ...]] | None:
    """The captions of the pictures `names` below a folder; None if the folder holds no captions.

    Raises:
        DataError: a file of captions cannot be read or names a picture that is not there, or a picture has no caption.
    """
    table = next((folder / name for name in METADATA if (folder / name).is_file()), None)
    if table is not None:
        found = _from_table(table, set(names))
    else:
        found = {name: _lines(folder / PurePosixPath(name).with_suffix(".txt")) for name in names}
        if not any(found.values()):
            return None
    bare = next((name for name in names if not found.get(name)), None)
    if bare is not None:
        source = table or (folder / bare).with_suffix(".txt")
        raise DataError(f"{folder / bare} has no caption: write one into {source}, or remove the picture.")
    return [tuple(found[name]) for name in names]


def _from_table(table: Path, names: set[str]) -> dict[str, list[str]]:
    """{name: captions} of a metadata file."""
    found: dict[str, list[str]] = {}
    for where, row in _rows(table):
        missing = next((column for column in (FILE, TEXT) if not isinstance(row.get(column), str)), None)
        if missing is not None:
            raise DataError(
                f"{where} has no text in the column {missing}: {table.name} needs the columns {FILE} and {TEXT}."
            )
        name = str(PurePosixPath(row[FILE]))
        if name not in names:
            raise DataError(
                f"{where} names {row[FILE]}, and {table.parent} has no such picture: add it, or remove the row."
            )
        if text := row[TEXT].strip():
            found.setdefault(name, []).append(text)
    return found


def _rows(table: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a metadata file, and where each stands, for messages."""
    if table.suffix == ".parquet":
        yield from _parquet(table)
        return
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            if table.suffix == ".csv":
                reader = csv.DictReader(file)
                for row in reader:
                    yield f"line {reader.line_num} of {table}", row
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"line {number} of {table}", _object(line, number, table)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(f"{table} cannot be read ({reason}): write it as UTF-8 text.") from error


def _object(line: str, number: int, table: Path) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"line {number} of {table} is not JSON ({error.msg}): correct or remove it.") from error
    if not isinstance(found, dict):
        raise DataError(f"line {number} of {table} is not a JSON object: write {{…}} with {FILE} and {TEXT}.")
    return found


def _parquet(table: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pandas

    try:
        frame = pandas.read_parquet(table)
    except ImportError as error:
        raise DataError(
            f"{table} needs the package pyarrow: pip install 'flowdiff[data]', or write metadata.csv."
        ) from error
    except Exception as error:  # a damaged file can fail anywhere in the decoder
        raise DataError(f"{table} cannot be read ({type(error).__name__}): write it again.") from error
    for number, row in enumerate(frame.to_dict("records")):
        yield f"row {number} of {table}", {str(key): value for key, value in row.items()}


def _lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty; none if it does not exist."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise DataError(f"{path} cannot be read ({reason}): write the captions as UTF-8 text.") from error
