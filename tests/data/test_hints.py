"""Hints: their pictures, and what their measures say of equal and of other pictures."""

import pytest
import torch

from flowdiff import registry
from flowdiff.data.hints import Hint
from flowdiff.diffusion.hinting import Hinting
from flowdiff.errors import ConfigurationError
from flowdiff.yaml_defaults import defaults


def made(name: str, shape=(1, 8, 8), **settings) -> Hint:
    return registry.create("hint", {**defaults("hint", name), **settings}, shape=shape)


def square(n: int = 2, size: int = 16) -> torch.Tensor:
    """Black images with a bright square, a pixel further to the right in each."""
    x = torch.full((n, 1, size, size), -0.9)
    for i in range(n):
        x[i, :, 4:12, 3 + i : 11 + i] = 0.9
    return x


@pytest.mark.parametrize("name", ["edges", "low_resolution", "grey", "mask"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_hint_is_a_picture_of_the_stated_shape_that_agrees_with_itself(name, channels):
    hint = made(name, (channels, 16, 16))
    x = square().expand(-1, channels, -1, -1)
    h = hint(x)
    assert tuple(h.shape) == (2, *hint.shape)
    assert h.dtype == x.dtype
    assert bool((h.abs() <= 1).all())
    assert hint.channels in (1, 3)
    best = 0.0 if hint.agreement.endswith("error") else 1.0
    assert torch.allclose(hint.obeyed(h, h).double(), torch.full((2,), best).double())
    other = hint.obeyed(h, h.flip(0)).double()
    assert bool((other > 0.01).all()) if best == 0 else bool((other < 0.99).all())


def test_edges_lie_around_a_square():
    (edges,) = made("edges", (1, 16, 16))(square(1))
    assert set(edges.unique().tolist()) == {-1.0, 1.0}
    assert not bool((edges[0, 6:10, 5:9] > 0).any())  # inside
    assert bool((edges[0, 6:10, 1:5] > 0).any(1).all())  # its left side
    blank = made("edges").obeyed(*(torch.full((1, 1, 8, 8), -1.0),) * 2)
    assert blank.tolist() == [1.0]


def test_low_resolution_is_the_mean_of_blocks():
    x = torch.arange(16.0).view(1, 1, 4, 4) / 16
    h = made("low_resolution", (1, 4, 4), factor=2)(x)
    assert torch.equal(h[0, 0, :2, :2], torch.full((2, 2), float(x[0, 0, :2, :2].mean())))


def test_a_class_map_shows_the_colour_of_each_digit():
    data = registry.create("dataset", {**defaults("dataset", "captioned_digits"), "num_train": 4, "num_test": 16})
    data.setup()
    hint = registry.create("hint", "class_map", data=data, shape=data.shape)
    batch = data.test[torch.arange(16)]
    h = hint(data.centre(batch.x))
    assert tuple(h.shape[1:]) == hint.shape == (3, *data.shape[1:])
    scenes = data.test.scenes
    for i in range(16):
        shown = {tuple(round(v, 2) for v in pixel) for pixel in h[i].flatten(1).T.tolist()} - {(-1.0, -1.0, -1.0)}
        assert len(shown) == len({c for c in scenes.colours[i].tolist() if c >= 0})


def test_several_hints_are_one_behind_the_other():
    both, other = (Hinting(made(name), lambda x: x, lambda x: x, (8, 8)) for name in ("mask", "low_resolution"))
    both.extend(other)
    x = square(size=8)
    h = both.of_raw(x)
    assert h.shape == (2, *both.shape) == (2, 2, 8, 8)
    assert torch.equal(h, torch.cat([made("mask")(x), made("low_resolution")(x)], 1))
    assert {key: value.tolist() for key, value in both.obeyed(h, h).items()} == {
        "mask_agreement": [1.0, 1.0],
        "low_resolution_error": [0.0, 0.0],
    }


@pytest.mark.parametrize(
    ("name", "shape", "settings", "said"),
    [
        ("edges", (2,), {}, "take a dataset of images"),
        ("edges", (1, 8, 8), {"low": 0.5}, "is above high"),
        ("low_resolution", (1, 8, 8), {"factor": 3}, "choose a divisor of both"),
        ("mask", (1, 8, 8), {"threshold": 2.0}, "less than or equal to 1"),
    ],
)
def test_what_does_not_fit_is_refused(name, shape, settings, said):
    with pytest.raises(ConfigurationError, match=said):
        made(name, shape, **settings)
