"""The multi-scale form: accepted sizes, what happens to the halves, what its split prior depends on."""

import pytest
import torch
from flow_cases import perturb
from small_models import normal

from flowdiff import registry
from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.flows.multiscale import MultiScale, checkerboard, conv_nets, image_levels, squeeze, unsqueeze
from flowdiff.models.nn.residual import NetSettings

EMBED = 3


def make(levels: int) -> MultiScale:
    """A flow without steps: squeezes and split priors alone."""
    torch.manual_seed(0)
    act = registry.create("activation", "swish")
    nets = conv_nets(NetSettings(8, 1, EMBED, act, "film"))
    return perturb(MultiScale((1, 8, 8), levels, lambda shape: [], nets, 2.0, False).double())


def inputs() -> tuple[torch.Tensor, Conditioning]:
    x, e = normal((2, 1, 8, 8), (2, EMBED))
    return x, Conditioning(e)


@pytest.mark.parametrize(("levels", "untouched"), [(1, 64), (2, 32), (3, 16)])
def test_each_level_finishes_half_of_the_channels(levels, untouched):
    """The priors transform the halves that leave; what remains at the last level equals the input."""
    x, cond = inputs()
    flow = make(levels)
    z, logdet = flow(x, cond)
    assert int((z == x)[0].sum()) == untouched
    assert bool(logdet.any()) == (levels > 1)  # one level without steps is the identity
    back, inverse_logdet = flow.inverse(z, cond)
    torch.testing.assert_close(back, x, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(inverse_logdet, -logdet, rtol=1e-10, atol=1e-10)


def test_the_split_prior_depends_on_the_remaining_half_and_on_the_condition():
    flow, (x, cond) = make(2), inputs()
    z, _ = flow(x, cond)
    other, _ = flow(x, Conditioning(cond.vector.flip(0)))
    stays = (z == x).all(0)
    leaves = ~stays
    assert ((other - z)[:, leaves].abs() > 0).all()
    moved = x.clone()
    moved[:, stays] += 1
    assert ((flow(moved, cond)[0] - z)[:, leaves].abs() > 0).all()


def test_checkerboard_squares():
    """After squeezing and ordering, the first half of the channels are the black squares of each image channel."""
    board = (torch.arange(4)[:, None] + torch.arange(6)) % 2
    image = torch.stack([board, 2 + board]).double()[None]  # black squares 0 and 2, white squares 1 and 3
    channels = squeeze(image)[0, checkerboard(8)]
    assert channels.flatten(1).unique(dim=1).flatten().tolist() == [0, 0, 2, 2, 1, 1, 3, 3]


def test_squeeze_equals_pixel_unshuffle_of_torch():
    image = torch.arange(2 * 3 * 4 * 6.0).view(2, 3, 4, 6)
    assert torch.equal(squeeze(image), torch.nn.functional.pixel_unshuffle(image, 2))
    assert torch.equal(unsqueeze(squeeze(image)), image)


@pytest.mark.parametrize(
    ("shape", "levels", "expected"),
    [
        ((1, 8, 8), None, 2),
        ((1, 28, 28), None, 2),
        ((3, 32, 32), None, 3),
        ((3, 256, 256), None, 3),
        ((1, 2, 8), None, 1),
        ((3, 64, 32), 5, 5),
        ((1, 28, 28), 1, 1),
    ],
)
def test_the_number_of_levels_follows_from_the_size(shape, levels, expected):
    assert image_levels("glow", shape, levels) == expected


@pytest.mark.parametrize(
    ("shape", "levels", "message"),
    [
        ((5,), None, r"flow=glow .*shape \(5,\).*not images.*take flow=realnvp"),
        (
            (1, 28, 28),
            3,
            r"3 levels .*multiples of 2\^3 = 8 \(8, 16, 24, …\), not 28×28; 28×28 allows flow.levels=1 or 2",
        ),
        ((1, 7, 8), None, r"multiples of 2\^1 = 2 .*not 7×8: resize or pad.* take flow="),
        ((1, 7, 8), 2, r"2 levels .*multiples of 2\^2 = 4 .*not 7×8: resize or pad"),
    ],
)
def test_refused_sizes_come_with_the_allowed_ones(shape, levels, message):
    with pytest.raises(ConfigurationError, match=message):
        image_levels("glow", shape, levels)
