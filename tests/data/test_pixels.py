"""The maps between levels and model space, for every number of levels in use."""

import pytest
import torch

from flowdiff.data.pixels import Pixels, Vectors
from flowdiff.errors import ConfigurationError

LEVELS = [2, 17, 256]


def ramp(levels, n=64):
    """Every level in every one of n images: uint8 (n, 1, 1, levels)."""
    return torch.arange(levels, dtype=torch.uint8).expand(n, 1, 1, levels)


@pytest.mark.parametrize("levels", LEVELS)
def test_dequantisation_fills_each_bin_uniformly_and_quantize_undoes_it(levels):
    pixels, k = Pixels(levels, True, False), ramp(levels, n=4096)
    x = pixels.to_model(k, torch.Generator().manual_seed(0))
    assert x.min() >= -1
    assert x.max() <= 1
    assert torch.equal(pixels.level(x), k.float())
    torch.testing.assert_close(pixels.quantize(x), Pixels(levels, False, False).to_model(k), rtol=0, atol=1e-6)
    u = (x.double() + 1) * levels / 2 - k
    # Mean 1/2 and variance 1/12 of n draws: five standard errors each (that of the variance is √(1/180n)).
    n = u.numel()
    assert abs(u.mean() - 1 / 2) < 5 * (1 / 12 / n) ** 0.5
    assert abs(u.var() - 1 / 12) < 5 * (1 / 180 / n) ** 0.5


@pytest.mark.parametrize("levels", LEVELS)
def test_largest_draw_stays_in_its_bin(levels, monkeypatch):
    largest = 1 - 2**-24  # what torch.rand can return at most in float32
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(tuple(shape), largest))
    pixels = Pixels(levels, True, False)
    assert torch.equal(pixels.level(pixels.to_model(ramp(levels))), ramp(levels).float())


@pytest.mark.parametrize("levels", LEVELS)
def test_levels_are_midpoints_of_bins_without_dequantisation_and_uint8_spans_black_to_white(levels):
    pixels = Pixels(levels, False, False)
    x = pixels.to_model(ramp(levels))
    midpoints = 2 * (torch.arange(levels, dtype=torch.float64) + 0.5) / levels - 1
    assert x.dtype == torch.float32
    torch.testing.assert_close(x[0, 0, 0].double(), midpoints, rtol=0, atol=1e-6)  # a few float32 roundings below 2
    picture = pixels.to_uint8(x)
    expected = (torch.arange(levels, dtype=torch.float64) * 255 / (levels - 1)).round().to(torch.uint8)
    assert torch.equal(picture[0, 0, 0], expected)
    outside = torch.tensor([[-3.0, 7.0]])
    assert pixels.to_uint8(outside).tolist() == [[0, 255]]


def test_flips_half_of_the_training_images_and_no_others():
    pixels, k = Pixels(256, False, True), ramp(256, n=1000)
    plain = pixels.to_model(k, torch.Generator().manual_seed(0))
    x = pixels.to_model(k, torch.Generator().manual_seed(0), train=True)
    flipped = (x == plain.flip(-1)).flatten(1).all(1)
    kept = (x == plain).flatten(1).all(1)
    assert torch.equal(flipped, ~kept)
    assert abs(flipped.float().mean() - 0.5) < 5 * 0.5 / 1000**0.5  # five standard errors
    assert torch.equal(plain, Pixels(256, False, False).to_model(k, train=True))
    pixels, k = Pixels(17, True, True), ramp(17).clone()
    a, b, c = (pixels.to_model(k, torch.Generator().manual_seed(seed), train=True) for seed in (1, 1, 2))
    assert torch.equal(a, b)  # the same generator gives the same numbers
    assert not torch.equal(a, c)
    assert torch.equal(k, ramp(17))


def test_vectors_pass_through_and_have_no_pixels():
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Vectors().to_model(x, train=True), x.float())
    assert Vectors().quantize(x) is x
    with pytest.raises(ConfigurationError, match="no pixels"):
        Vectors().to_uint8(x)
