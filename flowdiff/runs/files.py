"""Atomic writes, file locks, and the error message for a disk that is full or closed to us."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from flowdiff.errors import RunError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)  # or a file where a folder must go


@contextmanager
def file_lock(path: Path) -> Iterator[int]:
    """Hold an exclusive lock on a file (created if missing) or a folder inside the `with`; yields its descriptor.

    Waits while another process or thread holds the lock. On a file system without flock nothing is locked. Raises
    RunError where the file cannot be created.
    """
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    while True:
        with disk_errors(path):
            file = os.open(path, flags, 0o644)
        try:
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            if _is_same_file(file, path):
                yield file
                return
        finally:
            os.close(file)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write; it replaces `path` at the end of the `with`, or is removed after an error.

    Readers of `path` see either the old content or all of the new one. Raises RunError on a full disk.
    """
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    with disk_errors(path):
        try:
            yield temporary
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def write_whole(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8; RunError on a full disk."""
    with whole(path) as temporary:
        temporary.write_text(as_unicode(text), encoding="utf-8")


def as_unicode(value: Any) -> Any:
    """Text, or containers of texts, in which the bytes of arguments are characters, also in a locale without UTF-8.

    There Python keeps bytes that it cannot decode as surrogates, which name the right file but cannot be written.
    """
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    if isinstance(value, dict):
        return {as_unicode(key): as_unicode(inner) for key, inner in value.items()}
    return [as_unicode(inner) for inner in value] if isinstance(value, list | tuple) else value


def can_write(folder: Path) -> bool:
    """Whether files can be written to a folder, which may still have to be made."""
    try:
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    except OSError:  # a parent cannot be read
        return False
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def disk_error(error: BaseException, path: Path | str) -> RunError | None:
    """The message for a file-system error that a user can fix; None for any other error.

    path: what was being written, for errors that do not name it themselves.
    """
    if not isinstance(error, OSError) or error.errno not in (*NO_SPACE, *NOT_WRITABLE):
        return None
    if error.errno in NOT_WRITABLE and error.filename:  # on a full disk this is the name of the temporary file
        path = error.filename
    return RunError(f"{path} cannot be written: {error.strerror}; choose another place or make room.")


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise the RunError of `disk_error` for file-system errors inside the `with`; other errors pass unchanged."""
    try:
        yield
    except OSError as error:
        if (explained := disk_error(error, path)) is None:
            raise
        raise explained from error


def _is_same_file(file: int, path: Path) -> bool:
    """False when the locked file was removed, and maybe created again, while we waited for the lock."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


class MissingFolders:
    """The folders that are missing on the way to a path, to remove those that were made and have stayed empty.

    Args:
        path: a folder; it need not exist.
    """

    def __init__(self, path: str | Path):
        path = Path(os.path.abspath(path))
        self._missing = [folder for folder in (path, *path.parents) if not folder.exists()]

    def remove_empty(self) -> None:
        """Remove the folders that were missing and are empty now; never one that was there before."""
        with suppress(OSError):  # the first one that is not empty keeps those around it
            for folder in self._missing:
                folder.rmdir()


@contextmanager
def removed_if_refused(path: str | Path, *patterns: str) -> Iterator[None]:
    """Undo what was written into a folder inside the `with`, if an error ends it before anything else was.

    Args:
        path: the folder; it need not exist.
        patterns: names of the files that are removed again, unless they were there before.
    """
    folder, missing = Path(path), MissingFolders(path)
    before = _entries(folder)
    try:
        yield
    except Exception:
        made = _entries(folder) - before
        if all(any(file.match(pattern) for pattern in patterns) for file in made):
            for file in made:
                file.unlink()
            missing.remove_empty()
        raise


def _entries(folder: Path) -> set[Path]:
    return set(folder.iterdir()) if folder.is_dir() else set()
