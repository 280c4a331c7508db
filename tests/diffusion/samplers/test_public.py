"""Equality with k-diffusion and diffusers; benchmarks/samplers.py measures it for a trained model too."""

import math
from pathlib import Path

import pytest
import torch

from flowdiff import registry
from flowdiff.noise import BrownianPath
from flowdiff.testing import oracles
from flowdiff.testing.public_samplers import CASES, difference, k_diffusion

MIXTURE = oracles.two_by_two()
NOISE = torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

# diffusers calls np.array on a tensor, which NumPy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


# diffusers' DDIM steps by ⌊1000/N⌋, which is the distance between its levels only where N divides 1000. From 15 steps
# on, multistep methods keep their order up to the last step.
@pytest.mark.parametrize("num_steps", [1, 2, 10, 20])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_same_samples(case, num_steps):
    if case.package == "k-diffusion" and k_diffusion() is None:
        pytest.skip("k-diffusion is not installed: pip install torchsde && pip install --no-deps k-diffusion")
    # k-diffusion computes in x's float64. diffusers keeps its levels, and often x, in float32, whose rounding of 6e-8
    # matters most in a first step to low noise: the largest difference seen is 4e-5
    assert difference(case, MIXTURE, NOISE, num_steps) < (1e-10 if case.package == "k-diffusion" else 1e-4)


@pytest.mark.parametrize("num_steps", [3, 14, 15, 30])
@pytest.mark.parametrize("name", ["dpmpp_2m_sde", "dpmpp_3m_sde"])
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_with_noise_same_samples_as_k_diffusion(name, eta, num_steps):
    if k_diffusion() is None:
        pytest.skip("k-diffusion is not installed: pip install torchsde && pip install --no-deps k-diffusion")
    if name == "dpmpp_3m_sde" and num_steps < 15:
        pytest.skip("k-diffusion keeps the order up to the last step for few steps too")
    sigmas = registry.create("schedule", "karras")(num_steps)
    x, settings = 80 * NOISE, {"eta": eta, "s_noise": 0.9}
    path = BrownianPath(x, torch.Generator().manual_seed(1))

    def noise(sigma, after):
        """The same noise, but of unit variance."""
        sigma, after = float(sigma), float(after)
        increment = after**eta * path.increment(sigma ** (-2 * eta), after ** (-2 * eta))
        return increment / math.sqrt(1 - (after / sigma) ** (2 * eta))

    sampler = registry.create("sampler", name, **settings)
    ours = sampler(lambda x, sigma, cond: MIXTURE(x, sigma), x, sigmas, generator=torch.Generator().manual_seed(1))
    sample = getattr(k_diffusion(), f"sample_{name}")
    theirs = sample(MIXTURE, x, sigmas, disable=True, noise_sampler=noise, **settings)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", registry.names("sampler"))
def test_every_sampler_of_denoisers_was_measured(name):
    """If this fails, run benchmarks/samplers.py."""
    if registry.create("sampler", name).of_consistency:
        return
    page = Path(__file__).parents[3] / "docs" / "samplers.md"
    assert f"| `{name}` |" in page.read_text()
