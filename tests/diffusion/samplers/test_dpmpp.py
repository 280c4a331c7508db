"""test_public.py compares the family with k-diffusion and diffusers."""

import math
from itertools import pairwise

import pytest
import torch

from flowdiff import registry
from flowdiff.testing import oracles
from flowdiff.testing.samplers import seeded, start

MIXTURE = oracles.two_by_two()
SDES = ["dpmpp_2m_sde", "dpmpp_3m_sde"]


def point(x, sigma, cond=None):
    """The denoiser of data that are always 0."""
    return torch.zeros_like(x)


def levels(high, low, num_steps):
    return [high * (low / high) ** (i / num_steps) for i in range(num_steps + 1)]


@pytest.mark.parametrize("eta", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("name", SDES)
def test_noise_keeps_the_marginals_of_a_point_on_any_grid(name, eta):
    """For data that are always 0, x ~ N(0, σ²) holds exactly at every σ."""
    n = 20_000
    x = registry.create("sampler", name, eta=eta)(point, start(n, 5.0), [5.0, 1.0, 0.7], generator=seeded())
    # 4 standard errors of a standard deviation of 2n normal numbers
    assert x.std().item() == pytest.approx(0.7, rel=4 / math.sqrt(4 * n))


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("name", SDES)
def test_noise_is_the_same_for_every_number_of_steps(name, eta):
    """For data that are always 0, x consists of the noise alone, and the increments of the noise add up."""
    sampler = registry.create("sampler", name, eta=eta)
    x = start(8, 5.0)
    once, often = (sampler(point, x, levels(5.0, 0.5, n), generator=seeded()) for n in (1, 16))
    # times are rounded by a relative 8e-6, so that the noise of the two grids differs by the root of that at most
    torch.testing.assert_close(once, often, rtol=0, atol=3 * 0.5 * math.sqrt(8e-6))
    assert not torch.allclose(once, sampler(point, x, levels(5.0, 0.5, 1), generator=seeded(2)), atol=0.1)


@pytest.mark.parametrize("name", SDES)
def test_converges_sample_by_sample(name):
    """Strong convergence, which independent noise for every grid would not have."""
    sampler = registry.create("sampler", name)
    x = MIXTURE.sample(torch.full((64,), 3.0, dtype=torch.float64), generator=seeded())
    ends = [sampler(MIXTURE, x, levels(3.0, 0.05, n), generator=seeded()) for n in (32, 64, 128, 256)]
    changes = [float((a - b).norm()) for a, b in pairwise(ends)]
    assert changes[-1] < 0.05 * float(ends[-1].norm())
    # order 1 in the mean square, for noise that does not depend on x: a quarter after two doublings, a third with luck
    assert changes[-1] < changes[0] / 3
