"""Results computed once and kept on disk, in files whose names hold a hash of what they were made from."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from flowdiff.errors import ConfigurationError, DataError


def cached(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `path` holds, or else what `make` returns, kept there for the next time.

    Holds plain types and tensors only. The file appears whole or not at all, so that several runs may share a folder.
    DataError if the file cannot be read, ConfigurationError if its folder cannot be written.
    """
    if path.is_file():
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise DataError(f"the cached file {path} cannot be read ({type(error).__name__}): delete it.") from error
    _writable(path.parent)
    value = make()
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=".partial-")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(value, file)
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
    return value


def _writable(folder: Path) -> None:
    """Make the folder before the work is done, not after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigurationError(
            f"metrics.cache_dir: {folder} cannot be written ({reason}): name another folder there or in FLOWDIFF_CACHE."
        ) from error
    if not os.access(folder, os.W_OK):
        raise ConfigurationError(
            f"metrics.cache_dir: {folder} cannot be written: name another folder there or in FLOWDIFF_CACHE."
        )
