"""test_public.py compares the family with k-diffusion and diffusers."""

import math
from itertools import pairwise

import pytest
import torch

from flowdiff import registry
from flowdiff.errors import ConfigurationError
from flowdiff.testing import oracles
from flowdiff.testing.count_calls import CountCalls

MIXTURE = oracles.two_by_two()
SDES = ["dpmpp_2m_sde", "dpmpp_3m_sde"]


def start(n, sigma):
    return sigma * torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def point(x, sigma, cond=None):
    """The denoiser of data that are always 0."""
    return torch.zeros_like(x)


def levels(high, low, num_steps):
    return [high * (low / high) ** (i / num_steps) for i in range(num_steps + 1)]


def test_2s_uses_the_denoised_sample_at_the_midpoint():
    """On N(0, τ²) D = x·τ²/(τ²+σ²)."""
    tau2 = 0.25
    oracle = oracles.Gaussian(torch.zeros(1), torch.tensor([[tau2]]))
    x = torch.tensor([[1.0], [-3.0]], dtype=torch.float64)
    counted = CountCalls(oracle)
    got = registry.create("sampler", "dpmpp_2s")(counted, x, [2.0, 0.5])
    middle = math.sqrt(2.0 * 0.5)
    shrink = tau2 / (tau2 + 4.0)
    x_middle = x * (shrink + middle / 2.0 * (1 - shrink))
    denoised = x_middle * tau2 / (tau2 + middle**2)
    torch.testing.assert_close(got, denoised + 0.5 / 2.0 * (x - denoised))
    assert counted.calls == 2


@pytest.mark.parametrize("settings", [{"eta": 0.0}, {"s_noise": 0.0}])
@pytest.mark.parametrize("name", SDES)
def test_no_noise_is_drawn_without_noise(name, settings):
    source = torch.Generator().manual_seed(0)
    state = source.get_state()
    registry.create("sampler", name, **settings)(MIXTURE, start(4, 5.0), levels(5.0, 0.1, 6), generator=source)
    assert torch.equal(source.get_state(), state)


def test_2m_sde_without_noise_is_2m():
    x, sigmas = start(4, 5.0), [*levels(5.0, 0.1, 20), 0.0]
    plain = registry.create("sampler", "dpmpp_2m")(MIXTURE, x, sigmas)
    torch.testing.assert_close(registry.create("sampler", "dpmpp_2m_sde", eta=0.0)(MIXTURE, x, sigmas), plain)


@pytest.mark.parametrize("eta", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("name", SDES)
def test_noise_keeps_the_marginals_of_a_point_on_any_grid(name, eta):
    """For data that are always 0, x ~ N(0, σ²) holds exactly at every σ."""
    n = 20_000
    x = registry.create("sampler", name, eta=eta)(point, start(n, 5.0), [5.0, 1.0, 0.7], generator=seeded())
    # 4 standard errors of a standard deviation of 2n normal numbers
    assert x.std().item() == pytest.approx(0.7, rel=4 / math.sqrt(4 * n))


def seeded(seed=1):
    return torch.Generator().manual_seed(seed)


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


@pytest.mark.parametrize("name", SDES)
def test_too_much_noise_is_refused(name):
    with pytest.raises(ConfigurationError, match=r"sampler\.eta=11\.0 is not allowed"):
        registry.create("sampler", name, eta=11.0)
