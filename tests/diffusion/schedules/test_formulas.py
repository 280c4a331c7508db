import math

import pytest
import torch

from flowdiff import registry


def share(u):
    """ln(σ/σ_min)/ln(σ_max/σ_min), which is 0 at the end up to rounding."""
    return ((u / 0.01).log() / math.log(5000)).clamp(min=0)


@pytest.mark.parametrize(
    ("name", "settings", "even"),
    [
        ("karras", {"rho": 5.0}, lambda u: u**0.2),
        ("exponential", {}, share),
        ("linear", {}, lambda u: u),
        *(("flow_matching", {"shift": a}, lambda u, a=a: u / (a + u)) for a in (0.5, 1.0, 3.0)),
        *(("polyexponential", {"rho": rho}, lambda u, rho=rho: share(u) ** (1 / rho)) for rho in (0.5, 1.0, 3.0)),
    ],
)
def test_levels_are_evenly_spaced_in_a_function_of_sigma(name, settings, even):
    sigmas = registry.create("schedule", name, sigma_min=0.01, sigma_max=50.0, **settings)(9)[:-1]
    ends = even(torch.tensor([50.0, 0.01], dtype=torch.float64)).tolist()
    torch.testing.assert_close(even(sigmas), torch.linspace(*ends, 9, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    assert sigmas[-1].item() == pytest.approx(0.01, rel=1e-12)


def test_polyexponential_at_power_one_is_exponential():
    settings = {"sigma_min": 0.01, "sigma_max": 50.0, "rho": 1.0}
    poly, plain = (registry.create("schedule", name, **settings)(12) for name in ("polyexponential", "exponential"))
    torch.testing.assert_close(poly, plain, rtol=1e-12, atol=0)


def test_linear_is_karras_at_rho_one():
    settings = {"sigma_min": 0.01, "sigma_max": 0.5}
    linear = registry.create("schedule", "linear", **settings)
    karras = registry.create("schedule", "karras", rho=1.0, **settings)
    torch.testing.assert_close(linear(12), karras(12), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(linear(12, 0.3), karras(12, 0.3), rtol=1e-12, atol=1e-15)


def test_flow_matching_has_the_levels_and_the_shift_of_diffusers():
    from diffusers import FlowMatchEulerDiscreteScheduler

    ours = registry.create("schedule", "flow_matching", sigma_min=0.01, sigma_max=50.0, shift=3.0)(9)[:-1]
    before = torch.linspace((50 / 3) / (1 + 50 / 3), (0.01 / 3) / (1 + 0.01 / 3), 9, dtype=torch.float64)
    public = FlowMatchEulerDiscreteScheduler(shift=3.0)
    public.set_timesteps(sigmas=before.tolist())
    t = public.sigmas[:-1].double()  # float32 there
    torch.testing.assert_close(ours / (1 + ours), t, rtol=1e-6, atol=0)
