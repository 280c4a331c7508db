"""Flow matching is that of torchcfm on a mixture: the path, the loss, the pairing by optimal transport, and samples."""

import pytest
import torch
from torchdiffeq import odeint

from flowdiff import registry
from flowdiff.diffusion.denoiser import Denoiser
from flowdiff.testing import oracles

pytestmark = pytest.mark.slow  # POT takes seconds to import
MIXTURE = oracles.two_by_two()


@pytest.fixture(scope="module")
def cfm():
    """The package, whose import needs POT too, or a skip."""
    pytest.importorskip("ot")
    return pytest.importorskip("torchcfm.conditional_flow_matching")


class Velocity(torch.nn.Module):
    """Theirs: v(x_t, t) = x1 − x0 on average, from noise x0 at t = 0 to data x1 at t = 1; off by a bend of x."""

    def __init__(self, off):
        super().__init__()
        self.off = off

    def forward(self, x_t, t):
        sigma = (1 - t) / t
        mean = (MIXTURE(x_t / t[:, None], sigma) - x_t) / (1 - t)[:, None]
        return mean + self.off * torch.sin(3 * x_t)


def denoiser(off):
    """The same function as our network, whose time runs from data to noise and whose velocity is noise − data."""

    class Network(torch.nn.Module):
        def forward(self, x_t, t, cond=None):
            return -Velocity(off)(x_t, 1 - t)

    return Denoiser(Network(), registry.create("scaling", "flow_matching")).double()


def batch(n=16):
    generator = torch.Generator().manual_seed(0)
    data = MIXTURE.sample(torch.full((n,), 1e-3, dtype=torch.float64), generator=generator)
    noise = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return data, noise, 0.05 + 0.9 * torch.rand(n, generator=generator, dtype=torch.float64)


def loss(**settings):
    weighting = registry.create("weighting", "flow_matching")
    return registry.create("loss", "denoising", weighting=weighting, **settings)


def test_the_loss_is_the_same(cfm):
    data, noise, t = batch()
    matcher = cfm.ConditionalFlowMatcher(sigma=0.0)
    _, x_t, velocity = matcher.sample_location_and_conditional_flow(noise, data, t=t)
    theirs = (Velocity(0.2)(x_t, t) - velocity).square().mean(1)
    ours = loss()(denoiser(0.2), data, (1 - t) / t, noise).loss
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-9)


def test_the_pairing_is_the_same(cfm):
    """Its plan between two batches of the same size is a permutation; it draws pairs from it, and we take each once."""
    data = batch()[0]
    paired = loss(pairing="optimal_transport").draw_noise(data, torch.Generator().manual_seed(1))
    noise = loss().draw_noise(data, torch.Generator().manual_seed(1))
    plan = cfm.OTPlanSampler(method="exact").get_map(noise, data)
    theirs = 16 * torch.from_numpy(plan).T @ noise
    torch.testing.assert_close(paired, theirs, rtol=0, atol=1e-5)


def test_samples_are_the_same(cfm):
    """Euler's method for the velocity that the loss of torchcfm teaches, from noise to data on the same times."""
    noise = batch()[1]
    sigmas = registry.create("schedule", "flow_matching", sigma_max=50.0)(20)
    times = 1 / (1 + sigmas)  # of torchcfm, rising to 1

    def velocity(t, x_t):
        return Velocity(0.2)(x_t, t.expand(len(x_t)))

    theirs = odeint(velocity, times[0] * sigmas[0] * noise, times, method="euler")[-1]
    ours = registry.create("sampler", "euler")(denoiser(0.2), sigmas[0] * noise, sigmas)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
