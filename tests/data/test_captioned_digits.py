"""Scenes of captioned digits: what is drawn is what the caption says, and what is held out never occurs."""

import numpy as np
import pytest
import torch
from idx_files import write_idx_set

from flowdiff import registry
from flowdiff.data.captioned_digits import (
    COLOURS,
    NUMERALS,
    ONE,
    TWO,
    Scenes,
    captions,
    drawn,
    pictures,
)
from flowdiff.errors import DataError


@pytest.fixture(scope="module")
def data():
    data = registry.create("dataset", "captioned_digits", num_train=500, num_test=100)
    data.prepare_data()
    data.setup()
    return data


def parsed(caption):
    """The digits with their colours in a caption, the first one left of or above the second, and its layout."""
    words = caption.replace(",", "").split()
    colour = {name: k for k, names in enumerate(COLOURS) for name in names}
    digit = {name: k for k, names in enumerate(NUMERALS) for name in names}
    found = [(digit[word], colour[before]) for before, word in zip(words, words[1:], strict=False) if before in colour]
    if len(found) == 2:
        if "below" in words or "right" in words:
            found.reverse()
        return found, int("above" in words or "below" in words)
    places = [("big", "large"), ("left",), ("right",), ("top", "upper"), ("bottom", "lower")]
    (layout,) = (i for i, names in enumerate(places) if set(names) & set(words))
    return found, layout


def test_a_caption_says_what_the_scene_is(data):
    scenes = data.train.scenes
    for i, texts in enumerate(data.train[:].captions):
        assert len(texts) == 2
        expected = [(int(d), int(c)) for d, c in zip(scenes.digits[i], scenes.colours[i], strict=True) if d >= 0]
        for text in texts:
            assert parsed(text) == (expected, int(scenes.layout[i])), text


def test_every_wording_occurs_and_the_article_is_right(data):
    texts = data.train.captions.texts
    for words in (*COLOURS, *NUMERALS):
        for word in words:
            assert any(word in text.replace(",", "").split() for text in texts), word
    for template in (wording for layouts in (ONE, TWO) for layout in layouts for wording in layout):
        end = template.split("}")[-1] or template.split("{")[0]
        assert any(end.strip() in text for text in texts), template
    assert not any(f" a {vowel}" in f" {text}" for text in texts for vowel in "aeiou")


def test_held_out_combinations_occur_in_neither_split(data):
    for split in (data.train, data.test):
        assert not split.scenes.held_out().any()
    assert not set(data.ask("held_out", 200, seed=0).prompts) & set(data.train.captions.texts)
    assert drawn(200, "held_out", torch.Generator().manual_seed(0)).held_out().all()
    assert not drawn(200, "seen", torch.Generator().manual_seed(0)).held_out().any()


def test_prompts_ask_for_the_attributes_of_their_pictures(data):
    asked = data.ask("held_out", 100, seed=0)
    sizes = data.attribute_sizes
    assert asked.attributes.keys() == sizes.keys() == data.attributes(torch.arange(3)).keys()
    for name, values in asked.attributes.items():
        assert 0 <= values.min() <= values.max() < sizes[name]
    for i, prompt in enumerate(asked.prompts):
        found, layout = parsed(prompt)
        (digit, colour), (second_digit, second_colour) = [*found, (-1, -1)][:2]
        values = [digit, colour, second_digit + 1, second_colour + 1, layout + (len(ONE) if len(found) == 2 else 0)]
        assert values == [int(asked.attributes[name][i]) for name in sizes]
    assert asked.x.shape == (100, 3, 16, 16)
    assert data.ask("held_out", 100, seed=0).prompts == asked.prompts != data.ask("held_out", 100, seed=1).prompts


def test_scenes_show_their_digits_in_their_colours():
    glyphs = torch.ones(3, 2, 8, 8)
    scenes = Scenes(
        torch.tensor([[3, -1], [3, 5], [3, 5]]), torch.tensor([[0, -1], [1, 2], [1, 2]]), torch.tensor([1, 0, 1])
    )
    left, beside, above = pictures(scenes, glyphs, 16).float() / 255
    tint = torch.tensor(list(COLOURS.values()))
    colour = tint[0][:, None, None].expand(3, 8, 8)
    torch.testing.assert_close(left[:, 4:12, :8], colour, atol=1 / 255, rtol=0)
    left[:, 4:12, :8] = 0
    assert not left.any()
    for image, second in ((beside, (slice(4, 12), slice(8, 16))), (above, (slice(8, 16), slice(4, 12)))):
        torch.testing.assert_close(image[:, *second], tint[2][:, None, None].expand(3, 8, 8), atol=1 / 255, rtol=0)
    assert pictures(scenes, glyphs, 32).shape == (3, 3, 32, 32)


def test_the_scenes_are_the_same_in_every_run_and_for_every_way_to_read(data):
    other = registry.create("dataset", "captioned_digits", num_train=500, num_test=100)
    other.prepare_data()
    other.setup()
    assert torch.equal(other.train[:].x, data.train[:].x)
    assert other.train.captions.texts == data.train.captions.texts
    rows = torch.tensor([7, 3, 7])
    assert torch.equal(data.train[rows].x, data.train[:].x[rows])
    assert data.train[rows].captions == [data.train[:].captions[i] for i in (7, 3, 7)]
    assert (data.train[:].label == data.train.scenes.digits[:, 0]).all()


def of_mnist(root, image_size):
    """Scenes whose digits are of a folder like MNIST's: image i of digit k is a square of level 25 k + 5."""
    data = registry.create(
        *("dataset", "captioned_digits"),
        handwriting="mnist",
        root=str(root),
        download=False,
        image_size=image_size,
        num_train=300,
        num_test=50,
    )
    data.prepare_data()
    data.setup()
    return data


@pytest.fixture
def like_mnist(tmp_path):
    labels = np.arange(40, dtype=np.uint8) % 10
    images = np.zeros((40, 28, 28), np.uint8)
    images[:, 2:26, 2:26] = 25 * labels[:, None, None] + 5  # all but the margin
    write_idx_set(tmp_path, "mnist", (images[:30], labels[:30]), (images[30:], labels[30:]))
    return tmp_path


@pytest.mark.parametrize("image_size", [16, 32])
def test_the_handwriting_may_be_that_of_mnist(image_size, like_mnist, data):
    scenes = of_mnist(like_mnist, image_size)
    assert torch.equal(scenes.train[:].x, of_mnist(like_mnist, image_size).train[:].x)
    for split in (scenes.train, scenes.test):
        assert split[:].x.shape == (len(split), 3, image_size, image_size)
        assert not split.scenes.held_out().any()
    # A large white digit shows the level of its image all over its place: the margin is left out.
    train = scenes.train
    large = (~train.scenes.two & (train.scenes.colours[:, 0] == 5) & (train.scenes.layout == 0)).nonzero()[:, 0]
    unit = image_size // 16
    inside = train[large].x[:, :, unit : 14 * unit, unit : 14 * unit]
    assert len(large)
    assert torch.equal(inside, (25 * train[large].label + 5).to(torch.uint8)[:, None, None, None].expand_as(inside))
    # The prompts do not depend on the handwriting, which is drawn after them.
    assert scenes.ask("held_out", 20, 0).prompts == data.ask("held_out", 20, 0).prompts


def test_missing_files_of_mnist_are_one_sentence(tmp_path):
    with pytest.raises(DataError, match=r"nowhere.*dataset\.download=true.*dataset\.root"):
        of_mnist(tmp_path / "nowhere", 32)


def test_both_parts_are_drawn_evenly():
    scenes = drawn(4000, "held_out", torch.Generator().manual_seed(0))
    assert len(scenes) == 4000
    assert 0.5 < scenes.two.float().mean() < 1  # two digits have more ways to be held out
    assert len(captions(scenes, torch.Generator().manual_seed(0))) == 4000
