import math

import pytest
import torch

from flowdiff import registry
from flowdiff.errors import ConfigurationError
from flowdiff.testing import sigma_samplers as laws

NAMES = registry.names("sigma_sampler")


@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_law(name, law):
    law(registry.create("sigma_sampler", name))


def test_edm_is_log_normal():
    log_sigma = registry.create("sigma_sampler", "edm", p_mean=-0.4, p_std=1.6)(20_000, generator=laws.seeded(0)).log()
    assert log_sigma.mean().item() == pytest.approx(-0.4, abs=5 * 1.6 / 20_000**0.5)
    assert log_sigma.std().item() == pytest.approx(1.6, abs=5 * 1.6 / 40_000**0.5)  # s.e. of a standard deviation


def test_logit_normal_times_are_logit_normal_and_shifted():
    n, settings = 20_000, {"mean": 0.3, "std": 0.8, "shift": 3.0}
    sigma = registry.create("sigma_sampler", "logit_normal", **settings)(n, generator=laws.seeded(0)).double()
    t = sigma / (1 + sigma)
    before = t / (3.0 - 2.0 * t)  # the inverse of t → αt/(1 + (α−1)t)
    logit = (before / (1 - before)).log()
    assert logit.mean().item() == pytest.approx(0.3, abs=5 * 0.8 / n**0.5)
    assert logit.std().item() == pytest.approx(0.8, abs=5 * 0.8 / (2 * n) ** 0.5)  # s.e. of a standard deviation


def test_log_uniform_stays_in_its_range():
    sampler = registry.create("sigma_sampler", "log_uniform", sigma_min=0.1, sigma_max=10.0)
    sigma = sampler(1000, generator=laws.seeded(0))
    assert 0.1 * (1 - 1e-6) <= sigma.min().item() < 0.11
    assert 9.0 < sigma.max().item() <= 10 * (1 + 1e-6)
    with pytest.raises(ConfigurationError, match=r"sigma_min=10 and sigma_max=0\.1"):
        registry.create("sigma_sampler", "log_uniform", sigma_min=10.0, sigma_max=0.1)


def test_uniform_is_uniform_in_its_range():
    n = 20_000
    sampler = registry.create("sigma_sampler", "uniform", sigma_min=0.01, sigma_max=0.5)
    sigma = sampler(n, generator=laws.seeded(0))
    assert 0.01 * (1 - 1e-6) <= sigma.min().item() < 0.011
    assert 0.499 < sigma.max().item() <= 0.5 * (1 + 1e-6)
    spread = 0.49 / math.sqrt(12)
    assert sigma.mean().item() == pytest.approx(0.255, abs=5 * spread / n**0.5)
    assert sigma.std().item() == pytest.approx(spread, rel=0.02)
    with pytest.raises(ConfigurationError, match=r"sigma_min=0\.5 and sigma_max=0\.01"):
        registry.create("sigma_sampler", "uniform", sigma_min=0.5, sigma_max=0.01)


def test_discrete_draws_levels_of_its_table():
    sampler = registry.create("sigma_sampler", "discrete", num_levels=7, table="cosine")
    sigma = sampler(2000, generator=laws.seeded(0))
    levels, counts = sigma.unique(return_counts=True)
    torch.testing.assert_close(levels, sampler.levels.float(), rtol=0, atol=0)
    expected = 2000 / 7
    # 5 standard deviations of a binomial count
    assert ((counts - expected).abs() < 5 * math.sqrt(expected * 6 / 7)).all()


def test_discrete_rounds_in_log_sigma():
    sampler = registry.create("sigma_sampler", "discrete", num_levels=5)
    levels = sampler.levels
    assert torch.equal(sampler.nearest(levels), levels)
    border = (levels[1:] * levels[:-1]).sqrt()
    assert torch.equal(sampler.nearest(border * 0.999), levels[:-1])
    assert torch.equal(sampler.nearest(border * 1.001), levels[1:])
    assert sampler.nearest(torch.tensor([[1e-9, 1e9]])).tolist() == [[levels[0].float(), levels[-1].float()]]
    assert sampler.nearest(torch.ones(2)).dtype == torch.float32


@pytest.mark.parametrize("name", sorted({*NAMES} - {"discrete"}))
def test_continuous_noise_levels_are_not_rounded(name):
    sigma = torch.tensor([1e-9, 0.3, 1e9])
    assert torch.equal(registry.create("sigma_sampler", name).nearest(sigma), sigma)
