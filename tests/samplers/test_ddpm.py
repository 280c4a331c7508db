"""ddpm against diffusers' DDPMScheduler with the same noise; its variance_type "fixed_small" is β̃, η = 1."""

import oracles
import pytest
import torch
from diffusers import DDPMScheduler

from flowdiff import registry

MIXTURE = oracles.two_by_two()


@pytest.mark.parametrize("num_steps", [1, 10, 100])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_equals_diffusers(spacing, num_steps):
    scheduler = DDPMScheduler(1000, clip_sample=False, variance_type="fixed_small", timestep_spacing=spacing)
    scheduler.set_timesteps(num_steps)
    table = (1 / scheduler.alphas_cumprod.double() - 1).sqrt()
    sigmas = table[scheduler.timesteps]
    x_vp = start = torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theirs = torch.Generator().manual_seed(1)
    for t, sigma in zip(scheduler.timesteps, sigmas, strict=True):
        x = x_vp * (sigma**2 + 1).sqrt()
        eps = (x - MIXTURE(x, sigma.expand(16))) / sigma
        x_vp = scheduler.step(eps, t, x_vp, generator=theirs).prev_sample
    got = registry.build("sampler", "ddpm")(
        MIXTURE,
        start * (sigmas[0] ** 2 + 1).sqrt(),
        [*sigmas.tolist(), 0.0],
        generator=torch.Generator().manual_seed(1),
    )
    # their arithmetic on ᾱ is in float32: 1 − ᾱ/ᾱ' of two neighbouring levels is known to about 1e-4 at worst
    torch.testing.assert_close(got, x_vp, rtol=1e-4, atol=1e-5)


def test_equals_diffusers_on_the_schedule_of_the_same_name():
    scheduler = DDPMScheduler(1000, clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(50)
    theirs = (1 / scheduler.alphas_cumprod[scheduler.timesteps].double() - 1).sqrt()
    # the cumulative product of 1000 factors is in float32: ᾱ is known to 6e-5, σ at the top to half of that
    torch.testing.assert_close(registry.build("schedule", "ddpm")(50)[:-1], theirs, rtol=1e-4, atol=0)


def test_is_ancestral_at_eta_one():
    x = 5 * torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigmas = [5.0, 1.0, 0.1, 0.0]
    samplers = registry.build("sampler", "ddpm"), registry.build("sampler", "ancestral", eta=1.0)
    got, expected = (s(MIXTURE, x, sigmas, generator=torch.Generator().manual_seed(2)) for s in samplers)
    assert torch.equal(got, expected)
