"""Accuracy of prompts: real pictures of them are right, those of other prompts are not."""

import pytest
import torch

from flowdiff import registry
from flowdiff.evaluation import prompts
from flowdiff.evaluation.features import small_cnn
from flowdiff.evaluation.features.choose import build_extractor
from flowdiff.evaluation.prompts import prompt_accuracy
from flowdiff.runs.result_table import rows_of


@pytest.fixture(scope="module")
def data():
    data = registry.create("dataset", "captioned_digits", num_train=2000, num_test=50)
    data.prepare_data()
    data.setup()
    return data


@pytest.fixture(scope="module")
def judge(data, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(small_cnn.TRAINING, "steps", 250)
        return build_extractor(data, tmp_path_factory.mktemp("cache"))


def test_samples_that_show_what_is_asked_are_right_and_others_are_not(data, judge, monkeypatch):
    monkeypatch.setattr(prompts, "PROMPTS", 200)
    pictures = {text: x for part in ("seen", "held_out") for text, x in zip(*_asked(data, part), strict=True)}

    def right(texts):
        return torch.stack([pictures[text] for text in texts])

    found = prompt_accuracy(right, data, judge, seed=0)
    assert {key for key in found if key.startswith("prompts_seen") and not key.endswith("_floor")} == {
        *("prompts_seen", "prompts_seen_digit", "prompts_seen_colour", "prompts_seen_place"),
        *("prompts_seen_second_digit", "prompts_seen_second_colour"),
    }
    for key, value in found.items():
        if not key.endswith("_floor"):
            assert value == pytest.approx(found[f"{key}_floor"], abs=0.02)  # texts that occur twice have one picture
    assert found["prompts_seen_place_floor"] > 0.9  # a judge of 250 steps; guessing has 0.2
    assert found["prompts_seen_colour_floor"] > 0.7  # guessing has 0.17
    shuffled = prompt_accuracy(lambda texts: right(texts[::-1]), data, judge, seed=0)
    assert shuffled["prompts_seen"] < 0.05
    assert shuffled["prompts_seen_floor"] == found["prompts_seen_floor"]
    names = [name for name, *_ in rows_of(found)]
    assert names == ["prompts, seen", "prompts, held out"]


def test_the_class_is_the_first_attribute(data, judge):
    """So that the features' classifier is one of classes, as that of any other data set."""
    indices = torch.arange(50)
    assert torch.equal(next(iter(data.attributes(indices).values())), data.train[indices].label)
    features = judge(data.centre(data.train[indices].x))
    assert judge.class_scores(features).shape == (50, data.num_classes)
    assert judge.accuracy == pytest.approx(
        (judge.class_scores(judge(data.centre(data.test[:].x))).argmax(1) == data.test.label).double().mean()
    )


def _asked(data, part):
    asked = data.ask(part, 200, 0)
    return asked.prompts, data.centre(asked.x)
