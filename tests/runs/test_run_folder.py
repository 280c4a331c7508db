"""The run folder: complete exactly when result.json is there, and written whole."""

import errno
from pathlib import Path

import pytest

from flowdiff.errors import RunError
from flowdiff.runs.files import disk_error, whole, write_whole
from flowdiff.runs.provenance import git_commit, versions
from flowdiff.runs.run_folder import RunFolder


def test_result_makes_a_run_complete(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.write_config({"seed": 0})
    assert not folder.is_complete
    folder.write_result({"metrics": {"test_loss": 0.5}})
    assert folder.is_complete
    assert folder.result() == {"metrics": {"test_loss": 0.5}}
    assert RunFolder.open(tmp_path / "run").config() == {"seed": 0}
    assert sorted(p.name for p in folder.path.iterdir()) == ["checkpoints", "config.yaml", "result.json"]


def test_missing_and_foreign_folders_are_sentences(tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        RunFolder.open(tmp_path / "none")
    with pytest.raises(RunError, match="is not a run folder"):
        RunFolder.open(tmp_path)


def test_evaluations_grow_by_rows_and_columns(tmp_path):
    folder = RunFolder(tmp_path)
    folder.append_evaluation({"sampler": "heun", "fd": 1.5})
    folder.append_evaluation({"sampler": "euler", "fd": 2.5, "nfe": 10})
    assert folder.evaluations.read_text() == "sampler,fd,nfe\nheun,1.5,\neuler,2.5,10\n"


def test_versions_and_commit():
    assert versions()["torch"]
    commit = git_commit()
    assert commit is None or len(commit.removesuffix("+dirty")) == 40


def test_failure_and_reopening(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.write_config({})
    assert folder.failure() is None
    folder.write_failure("es war größer.")
    assert folder.failure() == "es war größer."
    folder.failed_file.write_text("{")
    assert folder.failure() == "failed.json cannot be read"
    folder.reopen(from_scratch=False)
    assert folder.failure() is None
    assert folder.config_file.exists()
    folder.reopen(from_scratch=True)
    assert list(folder.path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "progress"),
    [
        (None, (0, None)),
        ("", (0, None)),
        ("step,train_loss\n", (0, None)),
        ("step,train_loss,val_loss\n49,0.5,\n99,0.25,\n100,,0.3\n", (101, 0.25)),
        ("step,train_loss,val_loss\n49,0.5,\n99,0.2", (50, 0.5)),  # a row half written
    ],
)
def test_progress_is_read_from_the_end_of_the_metrics(tmp_path, text, progress):
    folder = RunFolder(tmp_path)
    if text is not None:
        folder.metrics.write_text(text)
    assert folder.progress() == progress


def test_progress_of_a_long_run_reads_little(tmp_path):
    folder = RunFolder(tmp_path)
    folder.metrics.write_text("step,train_loss\n" + "".join(f"{i},{i / 10}\n" for i in range(100_000)))
    assert folder.progress() == (100_000, 9999.9)


def test_a_result_that_is_cut_off_is_none(tmp_path):
    folder = RunFolder(tmp_path)
    for text in ("", '{"metrics": ', "[]"):
        folder.result_file.write_text(text)
        assert not folder.is_complete
        with pytest.raises(RunError, match=r"result.json cannot be read \(.*\): the run's command goes on"):
            folder.result()
    folder.write_result({"steps": 8})  # by an older version
    assert folder.is_complete
    assert folder.test_loss() is None
    folder.write_result({"metrics": {"test_loss": 0.5}})
    assert folder.test_loss() == 0.5


@pytest.mark.parametrize("text", [None, "", "seed: [", "seed"])
def test_a_config_that_cannot_be_read_is_a_sentence(tmp_path, text):
    folder = RunFolder(tmp_path)
    if text is not None:
        folder.config_file.write_text(text)
    with pytest.raises(RunError, match=r"config.yaml cannot be read \(.*\): repeat the run's command with force=true"):
        folder.config()


def test_what_is_half_written_leaves_what_was_there(tmp_path, monkeypatch):
    file = tmp_path / "file"
    write_whole(file, "before")

    def full(path, text):
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(RunError, match=r"file cannot be written: No space left on device; choose another place"):
            write_whole(file, "after")

    def broken():
        with whole(file) as temporary:
            temporary.write_text("after")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert file.read_text() == "before"


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
def test_errors_of_the_disk_that_a_user_can_mend(error, place):
    told = disk_error(error, "here")
    assert (told is None) == (place is None)
    assert told is None or str(told).startswith(f"{place} cannot be written: ")
