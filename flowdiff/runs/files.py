"""Files that appear whole or not at all, locks on files, and the sentence for an error of the file system."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flowdiff.errors import RunError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)  # or a file in place of a folder


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, once nobody else does; RunError on a full disk."""
    try:
        file = path.open("w")
    except OSError as error:
        raise disk_error(error, path) or error from error
    with file:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary path to write, which takes the place of `path` at the end of the `with`, or is gone after an error.

    Whoever reads `path` finds all of it or what was there before. Raises RunError on a full disk.
    """
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if told := disk_error(error, path):
            raise told from error
        raise


def write_whole(path: Path, text: str) -> None:
    """Write a text file, whole or not at all; RunError on a full disk."""
    with whole(path) as temporary:
        temporary.write_text(text)


def disk_error(error: BaseException, place: Path | str) -> RunError | None:
    """The sentence for an error of the file system that a user can mend; None for any other error.

    place: what was being written, where the error does not name it itself.
    """
    if not isinstance(error, OSError) or error.errno not in (*FULL, *CLOSED):
        return None
    if error.errno in CLOSED and error.filename:  # a full disk names the temporary file that was to be copied
        place = error.filename
    return RunError(f"{place} cannot be written: {error.strerror}; choose another place or make room.")
