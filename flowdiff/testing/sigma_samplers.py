"""The laws of a sigma sampler, with independent and with stratified draws."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from unittest.mock import patch

import torch

from flowdiff.diffusion.sigma_samplers import SigmaSampler
from flowdiff.testing.compare import require, require_at_most, require_close, require_finite


def check_sigma_sampler(sampler: SigmaSampler) -> None:
    """Hold a sigma sampler to every law of one, with `stratified` on and off.

    Draws follow `quantile`; the generator determines them; they are on the given device; stratified batches vary less
    and have a draw in every stratum, in random order; draws are finite and above 0.

    Args:
        sampler: the sampler, which is not changed.

    Raises:
        AssertionError: the first law that is broken, by how much and where.
    """
    for law in LAWS:
        law(sampler)


def seeded(seed: int) -> torch.Generator:
    """A generator in the state of its seed."""
    return torch.Generator().manual_seed(seed)


def both_kinds(sampler: SigmaSampler) -> tuple[SigmaSampler, SigmaSampler]:
    """The sampler with independent draws and with stratified ones."""
    independent, stratified = copy.copy(sampler), copy.copy(sampler)
    independent.stratified, stratified.stratified = False, True
    return independent, stratified


def draws_follow_the_quantiles(sampler: SigmaSampler) -> None:
    """A fraction u of the draws lies below quantile(u)."""
    n = 20_000
    for kind in both_kinds(sampler):
        sigma = kind(n, generator=seeded(0)).double()
        require(sigma.shape == (n,), "n draws are (n,)", f"{n} draws have the shape {tuple(sigma.shape)}")
        for share in (0.1, 0.5, 0.9):
            level = kind.quantile(torch.tensor([share], dtype=torch.float64))
            found = (sigma < level * (1 + 1e-6)).double().mean().item()
            # 5 standard errors of a fraction; a discrete distribution jumps by the weight of a level, 1/1000
            tolerance = 5 * math.sqrt(share * (1 - share) / n) + 1e-3
            detail = f"{found:.4g} of the draws lie below quantile({share}) with stratified={kind.stratified}"
            require(abs(found - share) <= tolerance, "draws follow quantile", detail)


def generator_determines_the_draws(sampler: SigmaSampler) -> None:
    """The same seed gives the same draws, and torch's global generator is used only without a generator."""
    for kind in both_kinds(sampler):
        law = f"the generator determines the draws (stratified={kind.stratified})"
        state = torch.random.get_rng_state()
        first, again, other = (kind(64, generator=seeded(seed)) for seed in (1, 1, 2))
        require_close(again, first, law)
        require(not torch.equal(first, other), law, "another seed gives the same draws")
        require(torch.equal(state, torch.random.get_rng_state()), law, "torch's global generator is used as well")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            unseeded = kind(64)
            torch.manual_seed(5)
            require_close(kind(64, device="cpu"), unseeded, f"{law}, torch's global one if none is given")


def draws_are_on_the_given_device(sampler: SigmaSampler) -> None:
    """The noise levels are placed on `device`."""
    found = sampler(4, generator=seeded(0), device="meta").device
    require(found.type == "meta", "draws are on the given device", f"they are on {found} instead of meta")


def stratified_batches_vary_less(sampler: SigmaSampler) -> None:
    """The mean of ln σ over a batch of 64 varies at least five times less (1/√64 of it would be typical)."""
    spread = []
    for kind in both_kinds(sampler):
        source = seeded(0)
        means = torch.stack([kind(64, generator=source).log().mean() for _ in range(200)])
        spread.append(means.std().item())
    detail = f"the mean of ln σ over 64 draws varies by {spread[1]:.3g}, independent ones by {spread[0]:.3g}"
    require(spread[1] < spread[0] / 5, "stratified batches vary less", detail)


def stratified_covers_every_stratum_in_random_order(sampler: SigmaSampler) -> None:
    """One of n stratified draws lies in each n-th of the distribution; every position has the whole distribution."""
    stratified, n = both_kinds(sampler)[1], 50
    sigma = stratified(n, generator=seeded(0))
    edges = stratified.quantile(torch.arange(1, n) / n)
    ordered = sigma.sort().values
    law = "stratified draws cover every stratum"
    # 1e-5: the edges and the draws are rounded to float32 separately
    require_at_most(ordered[:-1] / edges, 1 + 1e-5, f"{law}: the ratio of a draw to the upper end of its stratum")
    require_at_most(edges / ordered[1:], 1 / (1 - 1e-5), f"{law}: the ratio of the lower end of a stratum to its draw")
    require(not torch.equal(sigma, ordered), "stratified draws are in random order", "they are sorted")
    # every position of the batch follows the whole distribution: its mean over batches agrees within 5 standard errors
    source = seeded(1)
    first = torch.stack([stratified(8, generator=source)[0].log() for _ in range(400)])
    middle = float(stratified.quantile((torch.arange(10_000) + 0.5) / 10_000).log().mean())
    off, allowed = abs(float(first.mean()) - middle), 5 * float(first.std()) / 20
    detail = f"the mean of ln σ at the first position is off by {off:.3g}, and {allowed:.3g} is allowed"
    require(off < allowed, "every position of a stratified batch has the whole distribution", detail)


def extreme_uniforms_stay_finite(sampler: SigmaSampler) -> None:
    """torch.rand gives 0 once in 2²⁴ draws, and (n − 1 + u)/n rounds to 1."""
    for kind in both_kinds(sampler):
        for uniform in (0.0, 1 - 2**-24):
            with patch.object(torch, "rand", lambda n, uniform=uniform, **_: torch.full((n,), uniform)):
                sigma = kind(3, generator=seeded(0))
            law = f"draws are finite and above 0 when torch.rand gives {uniform}"
            require_finite(sigma, law)
            require((sigma > 0).all(), law, f"they are {sigma.tolist()}")


LAWS: tuple[Callable[[SigmaSampler], None], ...] = (
    draws_follow_the_quantiles,
    generator_determines_the_draws,
    draws_are_on_the_given_device,
    stratified_batches_vary_less,
    stratified_covers_every_stratum_in_random_order,
    extreme_uniforms_stay_finite,
)
