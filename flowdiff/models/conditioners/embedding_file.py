"""Embeddings of captions in a file of 16-bit numbers that is mapped to memory; each caption is there once.

    l₁ … l_n | v₁ t₁₁ … t₁l₁ | … | v_n t_n1 … t_nl_n

l_i: number of tokens of caption i, uint16; v_i, t_ij: its vector and its tokens, float16. Captions are ordered by their
length, so that those that are encoded together hardly need padding. The file grows chunk by chunk under a temporary
name and gets its own name when it is complete, so interrupted encoding continues where it stopped.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flowdiff.digests import digest
from flowdiff.errors import ConfigurationError, DataError, RunError
from flowdiff.progress import counting
from flowdiff.runs.files import file_lock

log = logging.getLogger(__name__)

VERSION = 1  # of the method of encoding, part of the file's name: increase it when the method changes


class Embedding(NamedTuple):
    """The embedding of a text: its vector (E,) and its tokens (L, W), float16."""

    vector: np.ndarray
    tokens: np.ndarray

    @property
    def finite(self) -> bool:
        """Whether float16 could hold every number."""
        return bool(np.isfinite(self.vector).all() and np.isfinite(self.tokens).all())


Encode = Callable[[Sequence[str]], list[Embedding]]


class EmbeddingFile:
    """The embeddings of some texts, on disk.

    Args:
        path: the file.
        texts: the texts, each once, in the order of the file.
        widths: width of a vector and of a token.

    Raises:
        DataError: the file has the wrong size.
    """

    def __init__(self, path: Path, texts: Sequence[str], widths: tuple[int, int]) -> None:
        self.rows = {text: row for row, text in enumerate(texts)}
        self.widths = widths
        self.lengths = np.fromfile(path, np.uint16, len(texts))
        self.starts = _starts(self.lengths, widths)
        found, expected = path.stat().st_size, 2 * int(self.starts[-1])
        if len(self.lengths) < len(texts) or found != expected:
            raise DataError(f"{path} holds {found:,} bytes where {expected:,} are expected: delete it.")
        # A plain view, because each slice of a memmap costs as much as copying it.
        self.numbers = np.memmap(path, np.float16, mode="r").view(np.ndarray)

    def __contains__(self, text: str) -> bool:
        return text in self.rows

    def __getitem__(self, text: str) -> Embedding:
        row = self.rows[text]
        numbers, (vector, token) = self.numbers[self.starts[row] : self.starts[row + 1]], self.widths
        return Embedding(numbers[:vector], numbers[vector:].reshape(-1, token))


def embedded(
    texts: Sequence[str],
    folder: Path,
    key: Sequence[object],
    widths: tuple[int, int],
    count: Callable[[Sequence[str]], list[int]],
    encode: Encode,
    chunk_size: int,
) -> EmbeddingFile:
    """The embeddings of texts, computed if they are not in the folder yet.

    Args:
        texts: any texts; each is encoded once.
        folder: where the file lies.
        key: what embeddings depend on besides the text: JSON values.
        widths: width of a vector and of a token.
        count: texts → the number of tokens of each.
        encode: texts → their embeddings.
        chunk_size: texts that are encoded together, ≥ 1.

    Raises:
        ConfigurationError: the folder cannot be written.
        DataError: an embedding does not fit into float16, or the file was changed.
    """
    ordered = sorted(set(texts), key=lambda text: (len(text), text))
    path = folder / f"captions-{digest(list(key), ordered, VERSION)}.f16"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with file_lock(path.with_suffix(".lock")):  # only one of several runs encodes
            if not path.is_file():
                _encode(ordered, path, widths, count, encode, chunk_size)
    except (OSError, RunError) as error:
        cause = error.__cause__ if isinstance(error, RunError) else error
        reason = cause.strerror if isinstance(cause, OSError) else error
        raise ConfigurationError(
            f"conditioner.cache_dir: {folder} cannot be written ({reason}): make room, or name another folder there."
        ) from error
    return EmbeddingFile(path, ordered, widths)


def _encode(
    texts: Sequence[str],
    path: Path,
    widths: tuple[int, int],
    count: Callable[[Sequence[str]], list[int]],
    encode: Encode,
    chunk_size: int,
) -> None:
    """Append to the file of an earlier attempt until it is complete, then give it its name."""
    partial = path.with_suffix(".partial")
    lengths = np.array(count(texts), np.uint16)
    ends = 2 * _starts(lengths, widths)  # bytes up to the end of the first 0, 1, … texts
    with partial.open("ab") as file, counting("encoding captions") as progress:
        done = max(0, int(np.searchsorted(ends, file.tell(), side="right")) - 1)
        if done:
            log.info("encoding captions continues at %s of %s", f"{done:,}", f"{len(texts):,}")
            file.truncate(int(ends[done]))  # remove a text that was not written completely
        else:
            file.truncate(0)
            file.write(lengths.tobytes())
        for start in range(done, len(texts), chunk_size):
            chunk = texts[start : start + chunk_size]
            for text, found in zip(chunk, encode(chunk), strict=True):
                if not found.finite:
                    raise DataError(
                        f"the embedding of the caption {text!r} is not finite in float16: take another model."
                    )
                file.write(found.vector.tobytes() + found.tokens.tobytes())
            file.flush()
            progress(start + len(chunk), len(texts))
    os.replace(partial, path)


def _starts(lengths: np.ndarray, widths: tuple[int, int]) -> np.ndarray:
    """Where each text starts in the file, and where the last one ends, in numbers of 16 bits: (n + 1,) int64."""
    vector, token = widths
    sizes = vector + lengths.astype(np.int64) * token
    return len(lengths) + np.concatenate([np.zeros(1, np.int64), sizes.cumsum()])
