import pytest
import torch

from flowdiff.digests import digest
from flowdiff.errors import ConfigurationError, DataError
from flowdiff.evaluation.features.cache import cached


def test_computed_once_and_read_afterwards(tmp_path):
    path, calls = tmp_path / "deep" / "file.pt", []

    def make():
        calls.append(1)
        return {"x": torch.arange(3), "n": 3}

    first, second = cached(path, make), cached(path, make)
    assert calls == [1]
    assert second["n"] == first["n"] == 3
    assert torch.equal(first["x"], second["x"])
    assert [p.name for p in path.parent.iterdir()] == ["file.pt"]


def test_a_failure_leaves_no_file_behind_and_unreadable_files_and_folders_are_errors(tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path / "a.pt", lambda: (_ for _ in ()).throw(KeyboardInterrupt))

    def half_a_file(value, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half_a_file)
    with pytest.raises(OSError, match="disk full"):
        cached(tmp_path / "a.pt", dict)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a.pt").write_bytes(b"not a file of tensors")
    with pytest.raises(DataError, match="delete it"):
        cached(tmp_path / "a.pt", dict)
    with pytest.raises(ConfigurationError, match=r"metrics\.cache_dir.*FLOWDIFF_CACHE"):
        cached(tmp_path / "a.pt" / "below_a_file" / "b.pt", dict)


def test_digest_tells_parts_apart():
    assert digest("a", 1, [2]) == digest("a", 1, [2])
    assert len({digest("ab", "c"), digest("a", "bc"), digest("abc"), digest(b"abc"), digest("abc", None)}) == 5
