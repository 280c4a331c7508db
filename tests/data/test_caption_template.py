"""Captions of labelled data from the names of their classes."""

import pytest
import torch
from PIL import Image
from prepared_data import prepared

from flowdiff import config, registry
from flowdiff.errors import ConfigurationError, DataError
from flowdiff.runs.identity import run_id

TEMPLATE = "a photo of a handwritten {}"
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classes")
    for k, name in enumerate(("black_cat", "bee")):
        (folder / name).mkdir()
        for i in range(3):
            Image.new("RGB", (8, 8), (100 * k + i, 0, 0)).save(folder / name / f"{i}.png")
    return folder


def test_every_sample_says_its_class():
    data = prepared("digits", caption_template=TEMPLATE)
    for split in (data.train, data.test):
        batch = split[torch.arange(50)]
        assert batch.captions == [(f"a photo of a handwritten {WORDS[k]}",) for k in batch.label.tolist()]
    assert len(data.train.captions.texts) == 10
    assert prepared("digits").train[0].captions is None


def test_folders_give_their_names_in_place_of_the_captions_of_the_files(classes):
    (classes / "bee" / "0.txt").write_text("a caption of one picture alone would be a mistake")
    names = {0: "bee", 1: "black cat"}  # folders are numbered in their sorted order
    data = prepared("image_folder", path=str(classes), image_size=8, num_classes=2, caption_template="a {}")
    batch = data.train[:]
    assert batch.captions == [(f"a {names[k]}",) for k in batch.label.tolist()]


def test_a_configuration_counts_the_classes_that_the_captions_name(classes):
    given = ["dataset=image_folder", f"dataset.path={classes}", "conditioner=text"]
    composed = config.resolved(config.compose([*given, "dataset.caption_template='a {}'"]))
    assert composed["dataset"]["num_classes"] == 2
    assert config.resolved(config.compose(given))["dataset"]["num_classes"] is None
    with pytest.raises(
        DataError, match=r"dataset.caption_template=a \{\} needs classes, and image_folder is read without"
    ):
        prepared("image_folder", path=str(classes), image_size=8, caption_template="a {}")


@pytest.mark.parametrize("template", ["a photo", "{} and {}"])
def test_a_template_names_the_class_once(template):
    with pytest.raises(ConfigurationError, match=r"it must have \{\} once, where the name of the class goes"):
        registry.create("dataset", "digits", caption_template=template)


def test_text_takes_labelled_data_with_a_template():
    config.check(config.compose(["conditioner=text", f"dataset.caption_template='{TEMPLATE}'"]))
    with pytest.raises(
        ConfigurationError, match="the data set has none; set conditioner=class or none, or dataset.caption"
    ):
        config.check(config.compose(["conditioner=text"]))


def test_a_run_without_a_template_is_the_run_from_before_there_were_any():
    now = config.resolved(config.compose([]))
    before = {**now, "dataset": {k: v for k, v in now["dataset"].items() if k != "caption_template"}}
    assert run_id(now) == run_id(before)
    assert run_id(now) != run_id(config.resolved(config.compose([f"dataset.caption_template='{TEMPLATE}'"])))
