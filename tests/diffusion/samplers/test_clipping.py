"""Clipping: with it every D that a sampler sees is in the range of the data, and without it nothing changes."""

import logging

import pytest
import torch

from flowdiff import registry
from flowdiff.diffusion.samplers import clipping
from flowdiff.diffusion.samplers.clipping import DataRange
from flowdiff.diffusion.samplers.generate import generate
from flowdiff.models.networks.base import Network
from flowdiff.testing import oracles
from flowdiff.testing.models import model_of

MIXTURE = oracles.two_by_two()
SAMPLERS = [name for name in registry.names("sampler") if not registry.create("sampler", name).of_consistency]
BOX = torch.tensor([[-1.0, -3.0], [2.0, 4.0]])  # two clean samples, which span the range


class Steep(Network):
    """A score whose D = 1000·x points away from the data, and is finite wherever x is."""

    def forward(self, x, c_noise, cond=None):
        return 999 * x / c_noise.reshape(-1, 1) ** 2


def model(network=None, **given):
    found = model_of(network or MIXTURE.network, shape=(2,), **given)
    found.data_range.extend(BOX)
    return found


def inside(D):
    return torch.equal(D, D.clamp(BOX[0], BOX[1]))


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_d_is_in_range_and_every_sample_finite(name):
    """With the default settings of each sampler, on a D that is finite and as wrong as can be."""
    seen = []
    steep, sampler = model(Steep()), registry.create("sampler", name)
    x0 = steep.sample(3, sampler=sampler, clip=True, callback=lambda i, sigma, x, D: seen.append((x, D)))
    assert all(inside(D) and x.isfinite().all() for x, D in seen)
    assert inside(x0)


def test_without_clipping_a_steep_d_overflows():
    for name in ("heun", "ancestral", "dpmpp_2m_sde"):
        assert not model(Steep()).sample(3, sampler=registry.create("sampler", name)).isfinite().all()


@pytest.mark.parametrize("start", [{}, {"start": "flow", "sigma_start": 2.0}], ids=["noise", "flow"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_without_clipping_the_numbers_are_those_of_the_plain_denoiser(name, start):
    """And a range that holds every D changes no bit either."""
    plain, sampler = model(), registry.create("sampler", name, num_steps=6)
    unclipped = plain.sample(4, sampler=sampler, clip=False, **start)
    expected = generate(plain, sampler, plain.sampling.schedule, (2,), n=4, seed=0, **start)
    assert torch.equal(unclipped, expected)
    plain.data_range.extend(100 * BOX)
    assert torch.equal(plain.sample(4, sampler=sampler, clip=True, **start), expected)


def test_a_guided_d_is_clipped_after_it_was_guided():
    """D_∅ + 9·(D_c − D_∅) leaves the range, which holds D_c and D_∅; what a sampler sees does not."""
    classes = model(conditioner=registry.create("conditioner", "one_hot", num_classes=4))
    guide = registry.create("guidance", "cfg", denoiser=classes, null=MIXTURE.null, scale=9.0)

    def seen(**given):
        found = []
        classes.sample(4, callback=lambda i, sigma, x, D: found.append(D), **given)
        return torch.stack(found)

    assert inside(seen(clip=False))
    assert not inside(seen(guidance=guide, clip=False))
    assert inside(seen(guidance=guide, clip=True))


def test_a_flow_s_own_sample_is_not_clipped():
    """Its last step is D at σ_min, a part of the exact sample; a start higher up is denoised and therefore clipped."""
    far = oracles.Mixture(torch.full((1, 2), 50.0), torch.tensor([0.1]))
    exact = model(far.network)
    for sigma_start in (None, exact.sampling.schedule.sigma_min):
        assert (exact.sample(3, start="flow", sigma_start=sigma_start, clip=True) > 40).all()
    denoised = exact.sample(3, start="flow", sigma_start=0.5, clip=True)
    assert torch.equal(denoised, BOX[1].expand(3, 2))


def test_the_range_is_that_of_each_channel():
    maps = DataRange(2, images=False)
    assert not maps.known
    x = torch.randn(40, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    for part in x.split(16):
        maps.extend(part)
    assert maps.known
    torch.testing.assert_close(maps.low, x.amin((0, 2, 3)), rtol=0, atol=0)
    torch.testing.assert_close(maps.high, x.amax((0, 2, 3)), rtol=0, atol=0)
    assert torch.equal(maps(x), x)
    assert torch.equal(maps(9 * x).amax((0, 2, 3)), maps.high)
    maps.clear()
    assert not maps.known


def test_images_have_the_range_of_pixels_whatever_is_measured():
    images = DataRange(1, images=True)
    images.clear()
    images.extend(torch.tensor([[[[0.2]]]]))
    assert (images.low, images.high) == (-1, 1)


def test_a_checkpoint_keeps_the_range_and_an_older_one_has_none():
    measured = model()
    weights = measured.state_dict()
    assert torch.equal(weights["data_range.high"], BOX[1])
    loaded = model_of(MIXTURE.network, shape=(2,))
    loaded.load_state_dict(weights)
    assert torch.equal(loaded.data_range.low, BOX[0])
    older = {key: value for key, value in weights.items() if not key.startswith("data_range")}
    vectors, images = model_of(MIXTURE.network, shape=(2,)), DataRange(1, images=True)
    vectors.load_state_dict(older)
    assert not vectors.data_range.known
    images.load_state_dict({})
    assert images.known


def test_an_unknown_range_is_said_once_and_nothing_is_clipped(caplog):
    clipping.say_unknown_range.cache_clear()
    unmeasured, sampler = model_of(MIXTURE.network, shape=(2,)), registry.create("sampler", "euler", num_steps=2)
    with caplog.at_level(logging.WARNING):
        clipped = [unmeasured.sample(2, sampler=sampler, clip=clip) for clip in ("auto", True)]
    assert [record.message for record in caplog.records] == [caplog.records[0].message]
    assert "D is not clipped" in caplog.records[0].message
    assert all(torch.equal(x, unmeasured.sample(2, sampler=sampler, clip=False)) for x in clipped)
