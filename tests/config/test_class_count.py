"""dataset.num_classes=null is counted in the files where the conditioner needs classes."""

import json
import zipfile

import pytest
from PIL import Image

from flowdiff import build, config
from flowdiff.errors import ConfigurationError
from flowdiff.runs.identity import run_id


@pytest.fixture
def classes(tmp_path):
    """A folder of three classes, and an empty and a hidden subfolder."""
    for name in ("ant", "bee", "cat", ".ipynb_checkpoints"):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.new("L", (8, 8), i).save(tmp_path / name / f"{i}.png")
    (tmp_path / "empty").mkdir()
    return tmp_path


def settings(path, *more, kind="image_folder"):
    small = ["dataset.image_size=8", "dataset.channels=1"]
    return config.resolved(config.compose([f"dataset={kind}", f"dataset.path={path}", *small, *more]))


def test_subfolders_are_counted_and_the_run_is_that_of_their_number(classes):
    found, told = settings(classes), settings(classes, "dataset.num_classes=3")
    assert found["dataset"]["num_classes"] == 3
    assert found == told
    assert run_id(found) == run_id(told)


def test_null_stays_where_no_classes_are_needed(classes):
    assert settings(classes, "conditioner=none")["dataset"]["num_classes"] is None
    assert settings(classes, "conditioner=none", "dataset.path=nowhere")["dataset"]["num_classes"] is None


def test_a_model_is_built_for_the_counted_classes(classes):
    engine = build("dataset=image_folder", f"dataset.path={classes}", "dataset.image_size=8", "dataset.channels=1")
    assert engine.denoiser.num_classes == engine.data.num_classes == 3


def test_the_labels_of_a_zip_are_counted(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for i in range(3):
            file.writestr(f"{i}.png", b"")
        file.writestr("dataset.json", json.dumps({"labels": [["0.png", 0], ["1.png", 4], ["2.png", 2]]}))
    assert settings(tmp_path / "a.zip", kind="image_zip")["dataset"]["num_classes"] == 5


def test_what_cannot_be_counted_is_said(classes):
    flat = classes / "ant"
    (classes / "none").mkdir()
    for path, sentence in (
        (flat, r"ant/\d\.png lies in no class subfolder, so the classes cannot be counted: .*conditioner=none"),
        (classes / "none", "has no class subfolders with pictures: .*conditioner=none"),
        (classes / "gone", r"dataset\.path=.*gone is not a folder"),
    ):
        with pytest.raises(ConfigurationError, match=sentence):
            settings(path)
