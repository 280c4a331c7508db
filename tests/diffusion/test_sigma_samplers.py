import math

import pytest
import torch

from flowdiff import registry
from flowdiff.errors import ConfigurationError

NAMES = registry.names("sigma_sampler")


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_draws_follow_the_quantiles(name, stratified):
    sampler = registry.create("sigma_sampler", name, stratified=stratified)
    n = 20_000
    sigma = sampler(n, generator=seeded(0)).double()
    assert sigma.shape == (n,)
    for share in (0.1, 0.5, 0.9):
        level = sampler.quantile(torch.tensor([share], dtype=torch.float64))
        # 5 standard errors of a fraction; a discrete distribution jumps by the weight of a level, 1/1000 here
        tolerance = 5 * math.sqrt(share * (1 - share) / n) + 1e-3
        assert (sigma < level * (1 + 1e-6)).double().mean().item() == pytest.approx(share, abs=tolerance)


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_generator_determines_the_draws_and_the_global_one_is_unchanged(name, stratified):
    sampler = registry.create("sigma_sampler", name, stratified=stratified)
    state = torch.random.get_rng_state()
    first, again, other = (sampler(64, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(5)
    unseeded = sampler(64)
    torch.manual_seed(5)
    assert torch.equal(unseeded, sampler(64, device="cpu"))


@pytest.mark.parametrize("name", NAMES)
def test_noise_levels_are_on_the_given_device(name):
    assert registry.create("sigma_sampler", name)(4, generator=seeded(0), device="meta").device.type == "meta"


@pytest.mark.parametrize("name", NAMES)
def test_stratified_batches_vary_less(name):
    """The mean of ln σ over a batch of 64 varies at least five times less (1/√64 of it would be typical)."""
    spread = {}
    for stratified in (False, True):
        sampler = registry.create("sigma_sampler", name, stratified=stratified)
        source = seeded(0)
        means = torch.stack([sampler(64, generator=source).log().mean() for _ in range(200)])
        spread[stratified] = means.std().item()
    assert spread[True] < spread[False] / 5


@pytest.mark.parametrize("name", NAMES)
def test_stratified_covers_every_stratum_in_random_order(name):
    sampler = registry.create("sigma_sampler", name, stratified=True)
    n = 50
    sigma = sampler(n, generator=seeded(0))
    edges = sampler.quantile(torch.arange(1, n) / n)
    ordered = sigma.sort().values
    # 1e-5: the edges and the draws are rounded to float32 separately
    assert (ordered[:-1] <= edges * (1 + 1e-5)).all()
    assert (ordered[1:] >= edges * (1 - 1e-5)).all()
    assert not torch.equal(sigma, ordered)
    # every position of the batch follows the whole distribution: its mean over batches agrees within 5 standard errors
    source = seeded(1)
    first = torch.stack([sampler(8, generator=source)[0].log() for _ in range(400)])
    middle = sampler.quantile((torch.arange(10_000) + 0.5) / 10_000).log().mean()
    assert abs(first.mean() - middle) < 5 * first.std() / 20


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_extreme_uniforms_stay_finite(name, stratified, uniform, monkeypatch):
    """torch.rand gives 0 once in 2²⁴ draws, and (n − 1 + u)/n rounds to 1."""
    monkeypatch.setattr(torch, "rand", lambda n, **_: torch.full((n,), uniform))
    sigma = registry.create("sigma_sampler", name, stratified=stratified)(3, generator=seeded(0))
    assert sigma.isfinite().all()
    assert (sigma > 0).all()


def test_edm_is_log_normal():
    log_sigma = registry.create("sigma_sampler", "edm", p_mean=-0.4, p_std=1.6)(20_000, generator=seeded(0)).log()
    assert log_sigma.mean().item() == pytest.approx(-0.4, abs=5 * 1.6 / 20_000**0.5)
    assert log_sigma.std().item() == pytest.approx(1.6, abs=5 * 1.6 / 40_000**0.5)  # s.e. of a standard deviation


def test_log_uniform_stays_in_its_range():
    sigma = registry.create("sigma_sampler", "log_uniform", sigma_min=0.1, sigma_max=10.0)(1000, generator=seeded(0))
    assert 0.1 * (1 - 1e-6) <= sigma.min().item() < 0.11
    assert 9.0 < sigma.max().item() <= 10 * (1 + 1e-6)
    with pytest.raises(ConfigurationError, match=r"sigma_min=10 and sigma_max=0\.1"):
        registry.create("sigma_sampler", "log_uniform", sigma_min=10.0, sigma_max=0.1)


def test_discrete_draws_levels_of_its_table():
    sampler = registry.create("sigma_sampler", "discrete", num_levels=7, table="cosine")
    sigma = sampler(2000, generator=seeded(0))
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
