"""Every registered measurement: linear, with the transpose that belongs to it."""

import pytest
import torch
from PIL import Image

from flowdiff import registry
from flowdiff.diffusion.measurements import Measurement
from flowdiff.errors import ConfigurationError
from flowdiff.testing.measurements import check_measurement

NAMES = registry.names("measurement")
OF_VECTORS = ("none", "inpaint", "compressed")


def made(name, shape, **settings):
    return registry.create("measurement", name, shape=shape, **settings)


@pytest.mark.parametrize("name", NAMES)
def test_laws(name):
    check_measurement(made(name, (3, 6, 8)))
    if name in OF_VECTORS:
        check_measurement(made(name, (6,)))
    else:
        with pytest.raises(ConfigurationError, match=r"vector|colour images"):
            made(name, (6,))


@pytest.mark.parametrize("name", NAMES)
def test_the_smallest_picture_that_is_measured_so(name):
    """A·A⁺·y = y for y in the range of A; 1e-6: A·Aᵀ of a blur is ill-conditioned."""
    A, x = made(name, (3, 4, 4)), torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.manual_seed(0))
    y = A(x)
    torch.testing.assert_close(A(A.least_squares(y)), y, atol=1e-6, rtol=0)


def test_the_laws_see_what_breaks_them():
    class Square(Measurement):
        def __call__(self, x):
            return x**2

    class Shifted(Measurement):
        def __call__(self, x):
            return x

        def transposed(self, y):
            return y.roll(1, 1)

    for broken, law in ((Square, "A·\\(2x"), (Shifted, "Aᵀ")):
        with pytest.raises(AssertionError, match=law):
            check_measurement(broken((4,), 0.1))


@pytest.mark.parametrize(
    ("mask", "missing"),
    [
        ("left", [[1, 1, 0, 0]] * 4),
        ("right", [[0, 0, 1, 1]] * 4),
        ("top", [[1] * 4] * 2 + [[0] * 4] * 2),
        ("bottom", [[0] * 4] * 2 + [[1] * 4] * 2),
        ("centre", [[0] * 4, [0, 1, 1, 0], [0, 1, 1, 0], [0] * 4]),
    ],
)
def test_masks(mask, missing, tmp_path):
    shown = made("inpaint", (1, 4, 4), mask=mask).least_squares(torch.ones(1, int(16 - torch.tensor(missing).sum())))
    assert torch.equal(shown[0, 0], 1.0 - torch.tensor(missing))
    Image.fromarray((torch.tensor(missing) * 255).byte().numpy()).save(tmp_path / "mask.png")
    assert torch.equal(
        made("inpaint", (1, 4, 4), mask=str(tmp_path / "mask.png")).seen, made("inpaint", (1, 4, 4), mask=mask).seen
    )


def test_random_mask_hides_its_share_of_pixels_in_all_channels():
    first, second = (made("inpaint", (3, 8, 8), mask="random", share=0.25, seed=seed) for seed in (0, 1))
    assert len(first.seen) == 3 * 48
    assert torch.equal(first.seen[:48] + 64, first.seen[48:96])
    assert not torch.equal(first.seen, second.seen)


def test_noise_of_a_measurement():
    A = made("inpaint", (1, 64, 64), sigma_y=0.3)
    noise = A.observe(torch.zeros(4, 1, 64, 64), torch.manual_seed(0))
    assert float(noise.std()) == pytest.approx(0.3, rel=0.03)  # 4 standard errors of 8,192 numbers
    exact = torch.distributions.Normal(0.0, 0.3).log_prob(noise).sum(1)
    torch.testing.assert_close(A.log_likelihood(noise, torch.zeros(4, 1, 64, 64)), exact)


def picture(tmp_path, name, levels):
    Image.fromarray(torch.tensor(levels, dtype=torch.uint8).numpy()).save(tmp_path / name)
    return str(tmp_path / name)


def test_a_mask_that_is_none_is_refused(tmp_path):
    text = tmp_path / "text.png"
    text.write_text("no picture")
    offences = {
        "lefft": "is neither a mask's name nor a file",
        str(text): "cannot be read as a picture",
        picture(tmp_path, "small.png", [[0, 255]]): "has 1×2 pixels, and a sample of this run has 2×2",
        picture(tmp_path, "grey.png", [[0, 100], [200, 255]]): "has 4 grey levels and is no mask",
        picture(tmp_path, "blank.png", [[9, 9], [9, 9]]): "has 1 grey level and is no mask",
    }
    for mask, sentence in offences.items():
        with pytest.raises(ConfigurationError, match=sentence):
            made("inpaint", (1, 2, 2), mask=mask)
    with pytest.raises(ConfigurationError, match="is for images"):
        made("inpaint", (4,), mask="top")
    with pytest.raises(ConfigurationError, match="leaves nothing of a sample of 1×1×1 to be seen"):
        made("inpaint", (1, 1, 1), mask="left")


def test_other_samples_are_refused():
    with pytest.raises(ConfigurationError, match=r"measurement\.factor=3 does not divide"):
        made("super_resolution", (1, 8, 8), factor=3)
    with pytest.raises(ConfigurationError, match="is for colour images"):
        made("colourise", (1, 8, 8))
    with pytest.raises(ConfigurationError, match="at most 16384 dimensions"):
        made("compressed", (3, 128, 128))
