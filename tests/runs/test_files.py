"""Atomic writes, file locks, and the messages for a full or read-only disk."""

import errno
import threading
from pathlib import Path

import pytest

from flowdiff.errors import RunError
from flowdiff.runs.files import disk_error, file_lock, whole, write_whole


def test_a_failed_write_leaves_the_old_content(tmp_path, monkeypatch):
    file = tmp_path / "file"
    write_whole(file, "before")

    def full(path, text, encoding):
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(RunError, match=r"file cannot be written: No space left on device; choose another place"):
            write_whole(file, "after")
    with pytest.raises(ZeroDivisionError), whole(file) as temporary:
        temporary.write_text(f"after {1 / 0}")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert file.read_text() == "before"


@pytest.mark.parametrize("kind", ["file", "folder", "removed"])
def test_a_file_lock_has_one_holder(tmp_path, kind):
    path = tmp_path if kind == "folder" else tmp_path / "lock"
    events = []

    def enter(name):
        with file_lock(path):
            events.append(f"{name} in")
            if name == "other" and kind == "removed":
                assert path.exists()  # created again
            events.append(f"{name} out")

    other = threading.Thread(target=enter, args=("other",))
    with file_lock(path):
        other.start()
        other.join(0.05)
        if kind == "removed":
            path.unlink()
        events.append("we out")
    other.join()
    assert events == ["we out", "other in", "other out"]


@pytest.mark.parametrize(
    ("error", "place"),
    [
        (OSError(errno.ENOSPC, "full", "/tmp/a-copy"), "here"),
        (OSError(errno.EDQUOT, "full"), "here"),
        (PermissionError(errno.EACCES, "denied", "/data/root"), "/data/root"),
        (OSError(errno.EROFS, "read-only"), "here"),
        (FileNotFoundError(errno.ENOENT, "none", "/data/root"), None),
        (ValueError("other"), None),
    ],
)
def test_errors_of_the_disk_that_a_user_can_fix(error, place):
    explained = disk_error(error, "here")
    assert (explained is None) == (place is None)
    assert explained is None or str(explained).startswith(f"{place} cannot be written: ")
