"""start=image: a picture is noised as far as its strength says and denoised again."""

import pytest
import torch

from flowdiff.diffusion.samplers.image_start import NoisedImage, level_of
from flowdiff.errors import ConfigurationError
from flowdiff.noise import generators
from flowdiff.testing import oracles
from flowdiff.testing.models import model_of


def test_level_of_a_strength():
    grid = torch.tensor([80.0, 10.0, 2.0, 0.5, 0.0])
    assert [level_of(s, grid) for s in (1.0, 0.75, 0.5, 0.25, 0.01)] == [80.0, 10.0, 2.0, 0.5, 0.5]
    for strength in (0.0, 1.1):
        with pytest.raises(ConfigurationError, match="is not allowed: it is the share of the steps"):
            level_of(strength, grid)


def test_noise_belongs_to_the_sample():
    x0, sigma = torch.randn(1, 2, 3), torch.tensor([0.0, 2.0, 2.0])
    drawn = NoisedImage(x0).sample(sigma, None, generators(0, range(3)))
    assert torch.equal(drawn[:1], x0)
    alone = NoisedImage(x0).sample(sigma[2:], None, generators(0, [2]))
    assert torch.equal(drawn[2:], alone)


def test_a_weak_start_keeps_the_picture_and_a_strong_one_does_not():
    """Two clusters at ±1: a sample that begins at one stays there below σ = 1 and forgets it far above."""
    ends = oracles.Mixture(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), torch.tensor([0.1, 0.1]))
    model, image = model_of(ends.network, shape=(2,)), torch.tensor([1.0, 1.0])

    def share(strength):
        x = model.sample(400, start="image", image=image, strength=strength)
        return float((x[:, 0] > 0).double().mean())

    assert share(0.3) == 1.0
    assert share(1.0) == pytest.approx(0.5, abs=0.1)  # 4 standard errors of 400 samples
    with pytest.raises(ConfigurationError, match="start=image needs a picture"):
        model.sample(2, start="image")
