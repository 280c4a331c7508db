"""The run folder: complete exactly when result.json is there, and written whole."""

import pytest

from flowdiff.errors import RunError
from flowdiff.launch.run_folder import RunFolder, git_commit, versions


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
