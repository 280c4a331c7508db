"""ddim against diffusers' DDIMScheduler, which works in variance-preserving coordinates: x_VP = x/√(σ²+1)."""

import oracles
import pytest
import torch
from diffusers import DDIMScheduler

from flowdiff import registry

MIXTURE = oracles.two_by_two()


def reference(scheduler, x_vp):
    """diffusers' own loop, the network predicting the noise."""
    sigmas = (1 / scheduler.alphas_cumprod.double() - 1).sqrt()
    for t in scheduler.timesteps:
        sigma = sigmas[t]
        x = x_vp * (sigma**2 + 1).sqrt()
        eps = (x - MIXTURE(x, sigma.expand(len(x)))) / sigma
        x_vp = scheduler.step(eps, t, x_vp).prev_sample
    return x_vp


@pytest.mark.parametrize("num_steps", [1, 10, 50])
@pytest.mark.parametrize(
    ("table", "theirs"), [("linear", {}), ("sqrt_linear", {"beta_start": 0.00085, "beta_end": 0.012})]
)
def test_equals_diffusers_on_the_same_schedule(table, theirs, num_steps):
    name = {"linear": "linear", "sqrt_linear": "scaled_linear"}[table]
    scheduler = DDIMScheduler(1000, beta_schedule=name, clip_sample=False, timestep_spacing="trailing", **theirs)
    scheduler.set_timesteps(num_steps)
    x_vp = torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = reference(scheduler, x_vp)
    sigmas = registry.build("schedule", "ddpm", table=table)(num_steps)
    got = registry.build("sampler", "ddim", num_steps=num_steps)(MIXTURE, x_vp * (sigmas[0] ** 2 + 1).sqrt(), sigmas)
    # their tables are in float32, which the low levels feel most: (1 − ᾱ) = 1e-4 is known to 3e-4
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_equals_diffusers_on_its_own_grid():
    scheduler = DDIMScheduler(1000, clip_sample=False)  # "leading": ends in the smallest level of the table
    scheduler.set_timesteps(40)
    x_vp = torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigmas = (1 / scheduler.alphas_cumprod[scheduler.timesteps].double() - 1).sqrt()
    x = x_vp * (sigmas[0] ** 2 + 1).sqrt()
    got = registry.build("sampler", "ddim")(MIXTURE, x, [*sigmas.tolist(), 0.0])
    torch.testing.assert_close(got, reference(scheduler, x_vp), rtol=1e-4, atol=1e-5)


def test_is_euler():
    x = 5 * torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigmas = [5.0, 1.0, 0.1, 0.0]
    euler, ddim = (registry.build("sampler", name)(MIXTURE, x, sigmas) for name in ("euler", "ddim"))
    assert torch.equal(euler, ddim)
