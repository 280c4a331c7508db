"""dpmpp_2m against diffusers' DPMSolverMultistepScheduler (dpmsolver++, order 2, midpoint) on its own grids."""

import oracles
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from flowdiff import registry

MIXTURE = oracles.two_by_two()

# diffusers calls np.array on a tensor, which NumPy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


# Their karras grid with a final sigma_min is left out: its last step has length zero, which diffusers takes for the
# one of lower order and flowdiff does not count at all.
@pytest.mark.parametrize(("karras", "final"), [(True, "zero"), (False, "zero"), (False, "sigma_min")])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 10, 14, 15, 40])
def test_equals_diffusers(num_steps, karras, final):
    scheduler = DPMSolverMultistepScheduler(
        1000,
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        prediction_type="sample",
        use_karras_sigmas=karras,
        final_sigmas_type=final,
    )
    scheduler.set_timesteps(num_steps)
    scheduler.set_begin_index(0)  # their rounded karras timesteps repeat, so that they name no unique step
    sigmas = scheduler.sigmas.double()
    x_vp = start = torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for t, sigma in zip(scheduler.timesteps, sigmas, strict=False):
        x = x_vp * (sigma**2 + 1).sqrt()
        x_vp = scheduler.step(MIXTURE(x, sigma.expand(16)), t, x_vp).prev_sample
    got = registry.build("sampler", "dpmpp_2m")(MIXTURE, start * (sigmas[0] ** 2 + 1).sqrt(), sigmas)
    # they round x to float32 in every step
    torch.testing.assert_close(got, x_vp * (sigmas[-1] ** 2 + 1).sqrt(), rtol=1e-4, atol=1e-5)
