"""Paths of a run are absolute, are found again after a move, and may be given again; the run id stays the same."""

import shutil

import numpy as np
import pytest
from PIL import Image
from runs import TINY_DIGITS, settings, train

from flowdiff import config, load
from flowdiff.errors import ConfigurationError, RunError
from flowdiff.runs.identity import run_id
from flowdiff.runs.moving import found_again, with_absolute_paths
from flowdiff.runs.run_folder import RunFolder

PICTURES = [*TINY_DIGITS, "dataset=image_folder", "dataset.image_size=8", "dataset.channels=1", "conditioner=none"]
PICTURES += ["trainer.max_steps=1", "flow.n_flows=1"]


def pictures(folder):
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"{i}.png")


def without_record(plain):
    """The config as an older version wrote it, with relative paths."""
    return {**plain, "dataset": {**plain["dataset"], "path": "data/x"}, "hashed_as": {}}


def test_the_id_is_that_of_the_path_as_it_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = settings(*PICTURES, "dataset.path=data/x")
    assert plain["dataset"]["path"] == str(tmp_path / "data/x")
    assert plain["hashed_as"]["dataset.path"] == "data/x"
    older = without_record(plain)
    del older["hashed_as"]
    assert run_id(plain) == run_id(older) == run_id(with_absolute_paths(older))
    assert run_id(plain) != run_id(settings(*PICTURES, "dataset.path=data/y"))
    assert "hashed_as" not in settings()  # nothing to record


def test_a_run_resumes_and_samples_after_its_data_and_working_directory_have_changed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "data" / "x")
    result = train(tmp_path / "outputs" / "r", *PICTURES, "dataset.path=data/x")
    folder = RunFolder(tmp_path / "outputs" / "r")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert config.of_run(folder)["dataset"]["path"] == str(tmp_path / "data/x")
    folder.write_config(without_record(folder.config()))  # an older version's: looked for above the run's folder
    assert config.of_run(folder)["dataset"]["path"] == str(tmp_path / "data/x")

    shutil.move(tmp_path / "data" / "x", tmp_path / "moved")
    given = {"dataset.path": str(tmp_path / "moved"), "dataset.num_workers": 1, "metrics.cache_dir": "cache"}
    assert run_id(config.of_run(folder, given)) == result["run_id"]
    config.record_moved(folder, given)
    later = config.of_run(folder)
    assert later["dataset"]["path"] == str(tmp_path / "moved")
    assert later["dataset"]["num_workers"] == 1
    assert later["metrics"]["cache_dir"] == str(tmp_path / "elsewhere" / "cache")
    assert run_id(folder.config()) == result["run_id"]
    load(folder.path, moved=given)


def test_another_run_may_move(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = RunFolder("outputs/weak")
    other.write_config(settings())
    guided = settings("guidance=autoguidance", "guidance.run=outputs/weak")
    assert guided["guidance"]["run"] == str(tmp_path / "outputs/weak")
    older = {**guided, "guidance": {**guided["guidance"], "run": "outputs/weak"}}
    del older["hashed_as"]
    before = run_id(guided)
    assert before == run_id(older)
    folder = RunFolder("outputs/guided")
    folder.write_config(guided)
    shutil.move("outputs/weak", "weak")
    assert run_id(guided) == before  # also while it is missing
    assert run_id(config.of_run(folder, {"guidance.run": "weak"})) == before
    assert config.of_run(folder, {"guidance.run": "weak"})["guidance"]["run"] == str(tmp_path / "weak")


@pytest.mark.parametrize(
    ("moved", "said"),
    [
        ({"dataset.path": "/x"}, "dataset.path is not a setting of dataset=digits"),
        ({"dataset.num_workers": "many"}, "dataset.num_workers=many is not allowed"),
        ({"guidance.inner.run": "/x"}, "guidance.inner.run is not a setting of"),
    ],
)
def test_what_cannot_be_given_again_is_refused(moved, said, tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_config(settings())
    with pytest.raises(ConfigurationError, match=said):
        config.of_run(folder, moved)


def test_a_plugin_may_move(tmp_path):
    folder = RunFolder(tmp_path / "r")
    folder.write_config({**settings(), "plugins": [str(tmp_path / "gone.py")]})
    (tmp_path / "here.py").write_text("")
    with pytest.raises(RunError, match=r"gone\.py"):
        config.of_run(folder)
    assert config.of_run(folder, {"plugins": [tmp_path / "here.py"]})["plugins"] == [str(tmp_path / "here.py")]


def test_the_variable_of_the_cache_counts_whatever_a_run_recorded(tmp_path, monkeypatch):
    monkeypatch.delenv("FLOWDIFF_CACHE", raising=False)
    folder = RunFolder(tmp_path / "r")
    (tmp_path / "file").write_text("")
    (tmp_path / "mine").mkdir()
    for place in ("~/.cache/flowdiff", str(tmp_path / "file" / "x"), str(tmp_path / "mine")):
        base = settings()
        folder.write_config({**base, "metrics": {**base["metrics"], "cache_dir": place}})
        monkeypatch.delenv("FLOWDIFF_CACHE", raising=False)
        assert config.of_run(folder)["metrics"]["cache_dir"] == place
        monkeypatch.setenv("FLOWDIFF_CACHE", str(tmp_path / "new"))
        assert config.of_run(folder)["metrics"]["cache_dir"] == str(tmp_path / "new")


@pytest.mark.parametrize(("place", "found"), [("/dev/null/x", "new"), ("mine", "mine"), ("usual", "new")])
def test_a_cache_of_latents_moves_only_if_it_must(place, found, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = {"first_stage": {"name": "vae", "cache_dir": place}}
    usual = {"first_stage.cache_dir": "new"}, {"first_stage.cache_dir": "usual"}
    assert found_again(run, tmp_path, *usual)["first_stage"]["cache_dir"] == found


def test_missing_data_are_looked_for_where_the_variable_points(tmp_path):
    (tmp_path / "data").mkdir()
    run = {"dataset": {"name": "mnist", "root": "/gone"}}
    usual, plain = {"dataset.root": str(tmp_path / "data")}, {"dataset.root": "data"}
    assert found_again(run, tmp_path, usual, plain)["dataset"]["root"] == str(tmp_path / "data")
    assert found_again(run, tmp_path, plain, plain)["dataset"]["root"] == "/gone"


def test_a_cache_that_cannot_be_written_is_noticed_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    given = [*TINY_DIGITS, "metrics.frechet=true", f"metrics.cache_dir={tmp_path / 'file' / 'cache'}"]
    with pytest.raises(ConfigurationError, match=r"metrics\.cache_dir: .* cannot be written"):
        train(tmp_path / "r", *given)
    assert not (tmp_path / "r" / "checkpoints" / "last.ckpt").exists()
    assert not (tmp_path / "r" / "metrics.csv").exists()
