"""Results computed once and kept on disk, in files whose names hold a hash of their inputs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from flowdiff.errors import ConfigurationError, DataError
from flowdiff.runs.files import whole


def cached(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The content of the file `path`; if it does not exist, the result of `make`, which is saved there.

    The result holds plain types and tensors only. The file is written atomically, so several runs may share a folder.
    Raises DataError if the file cannot be read, ConfigurationError if its folder cannot be written.
    """
    if path.is_file():
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise DataError(f"the cached file {path} cannot be read ({type(error).__name__}): delete it.") from error
    _make_writable(path.parent)
    value = make()
    with whole(path) as temporary, temporary.open("wb") as file:
        torch.save(value, file)
    return value


def _make_writable(folder: Path) -> None:
    """Make the folder, and refuse one that cannot be written, before any work is done."""
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
