"""Class and caption side by side: their parts, one of them alone, and what is refused."""

import pytest
import torch
from text_models import conditioner_settings

from flowdiff import registry
from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioners.base import LabelledText
from flowdiff.testing import conditioners as laws

CAPTIONS = ["a red three", "blue", "a green two left of a golden nine"]
SMALL_TEXT = {"name": "text", "dim": 16, "layers": 1, "heads": 2}


def make(tmp_path, **settings):
    torch.manual_seed(0)
    given = conditioner_settings("class_and_text", tmp_path)
    made = registry.create("conditioner", num_classes=10, **{**given, **settings})
    made.fit(CAPTIONS, [3, 5, 2])
    return made.eval()


def test_the_parts_stand_side_by_side(tmp_path):
    both = make(tmp_path)
    cond = both.condition(LabelledText(torch.tensor([3, 5, 2]), CAPTIONS))
    label, text = both.label.condition(torch.tensor([3, 5, 2])), both.text.condition(CAPTIONS)
    assert torch.equal(cond.vector, torch.cat([label.vector, text.vector], 1))
    assert torch.equal(cond.tokens, text.tokens)
    assert (both.example_classes(), both.examples()) == ((3, 5, 2), tuple(CAPTIONS))


def test_the_caption_may_be_read_by_a_frozen_encoder(tmp_path):
    given = conditioner_settings("clip", tmp_path)
    text = {"name": "clip", "model": given["model"], "cache_dir": given["cache_dir"], "drop": 0.0}
    both = make(tmp_path, text=text, label={"name": "one_hot"})
    both.precompute(CAPTIONS)
    for law in laws.LAWS:
        law(both)


def test_a_class_alone_and_a_caption_alone_have_the_null_condition_of_the_other(tmp_path):
    both = make(tmp_path)
    cond = both.condition(LabelledText(torch.tensor([3, -1, -1]), [None, "blue", None])).vector
    no_label, no_text = both.label.null(1).vector[0], both.text.null(1).vector[0]
    torch.testing.assert_close(cond[0], torch.cat([both.label.condition(torch.tensor([3])).vector[0], no_text]))
    torch.testing.assert_close(cond[1], torch.cat([no_label, both.text.condition(["blue"]).vector[0]]))
    torch.testing.assert_close(cond[2:], both.null(1).vector)
    torch.testing.assert_close(both.negative("blue", 1).vector, cond[1:2])


def test_each_is_dropped_alone_at_its_rate_and_both_together(tmp_path):
    both = make(tmp_path, drop=0.3, label={"name": "class", "drop": 0.2}, text={**SMALL_TEXT, "drop": 0.5}).train()
    n, width = 4000, both.label.dim
    vector = both(
        LabelledText(torch.zeros(n, dtype=torch.int64), ["blue"] * n), torch.Generator().manual_seed(0)
    ).vector
    null = both.null(1).vector
    no_label = (vector[:, :width] == null[:, :width]).all(1)
    no_text = torch.isclose(vector[:, width:], null[:, width:], atol=1e-6).all(1)
    expected = {"label": 1 - 0.7 * 0.8, "text": 1 - 0.7 * 0.5, "both": 0.3 + 0.7 * 0.2 * 0.5}
    for found, p in zip((no_label, no_text, no_label & no_text), expected.values(), strict=True):
        assert abs(float(found.double().mean()) - p) < 4 * (p * (1 - p) / n) ** 0.5  # 4 standard errors


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"label": {"dim": 3}}, "conditioner.label={'dim': 3} does not name a conditioner: give it a name"),
        ({"label": {"name": "none"}}, "does not read classes: give it the name class or one_hot"),
        ({"text": {"name": "class"}}, "does not read captions: give it the name text, clip or pretrained_text"),
        ({"text": {"name": "text", "dims": 3}}, "dims is not a setting of conditioner=text"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(settings, sentence, tmp_path):
    with pytest.raises(ConfigurationError) as error:
        make(tmp_path, **settings)
    assert sentence in str(error.value)


def test_it_needs_classes(tmp_path):
    with pytest.raises(ConfigurationError, match="conditioner=class_and_text needs classes"):
        registry.create("conditioner", num_classes=None, **conditioner_settings("class_and_text", tmp_path))
