"""The run folder: complete exactly when result.json is there."""

import pytest

from flowdiff.errors import RunError
from flowdiff.runs.run_folder import RunFolder


def test_a_result_makes_a_run_complete(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.write_config({"seed": 0})
    assert not folder.is_complete
    for text in ("", '{"metrics": ', "[]"):  # cut off
        folder.result_file.write_text(text)
        assert not folder.is_complete
        with pytest.raises(RunError, match=r"result.json cannot be read \(.*\): the run's command continues"):
            folder.result()
    folder.write_result({"steps": 8})  # by an older version
    assert (folder.is_complete, folder.test_loss()) == (True, None)
    folder.write_result({"metrics": {"test_loss": 0.5}})
    assert folder.result() == {"metrics": {"test_loss": 0.5}}
    assert folder.test_loss() == 0.5
    assert RunFolder.open(tmp_path / "run").config() == {"seed": 0}
    assert sorted(p.name for p in folder.path.iterdir()) == ["checkpoints", "config.yaml", "result.json"]


def test_missing_and_foreign_folders_are_sentences(tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        RunFolder.open(tmp_path / "none")
    with pytest.raises(RunError, match="is not a run folder"):
        RunFolder.open(tmp_path)


@pytest.mark.parametrize("text", [None, "", "seed: [", "seed"])
def test_a_config_that_cannot_be_read_is_a_sentence(tmp_path, text):
    folder = RunFolder(tmp_path)
    if text is not None:
        folder.config_file.write_text(text)
    with pytest.raises(RunError, match=r"config.yaml cannot be read \(.*\): repeat the run's command with force=true"):
        folder.config()


def test_evaluations_grow_by_rows_and_columns(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.append_evaluation({"sampler": "heun", "fd": 1.5}) == 1
    assert folder.append_evaluation({"sampler": "euler", "fd": 2.5, "nfe": 10}) == 2
    assert folder.evaluations.read_text() == "sampler,fd,nfe\nheun,1.5,\neuler,2.5,10\n"


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
    folder.begin(folder.files_of_run("12345678"))
    assert [path for path in folder.path.rglob("*") if path.is_file()] == [folder.config_file]
