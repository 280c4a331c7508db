"""The pairing of noise and data, and flow matching as a denoising loss."""

from itertools import permutations

import pytest
import torch

import flowdiff
from flowdiff import registry
from flowdiff.diffusion.denoiser import Denoiser
from flowdiff.errors import ConfigurationError
from flowdiff.testing import oracles


def drawn(pairing, x0):
    loss = registry.create("loss", "denoising", weighting=registry.create("weighting", "unit"), pairing=pairing)
    return loss.draw_noise(x0, torch.Generator().manual_seed(1))


def test_paired_noise_is_the_nearest_permutation_of_the_batch():
    x0 = torch.randn(6, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    plain, paired = drawn("independent", x0), drawn("optimal_transport", x0)
    costs = {order: (x0 - plain[list(order)]).square().sum().item() for order in permutations(range(6))}
    best = min(costs, key=costs.__getitem__)
    assert best != tuple(range(6))  # otherwise the test could not fail
    torch.testing.assert_close(paired, plain[list(best)], rtol=0, atol=0)


def test_a_density_cannot_be_trained_with_paired_noise():
    with pytest.raises(ConfigurationError, match=r"loss\.pairing=optimal_transport.*D is not x \+ σ²∇log p"):
        flowdiff.build("loss.pairing=optimal_transport")
    flowdiff.build("loss.pairing=optimal_transport", "network=mlp", "scaling=flow_matching")


class Velocity(torch.nn.Module):
    """The network of scaling=flow_matching that knows the data: v(x_t, t)."""

    def __init__(self, oracle):
        super().__init__()
        self.oracle = oracle

    def forward(self, x_t, t, cond=None):
        time = t[:, None]
        sigma = t / (1 - t)
        return (x_t - self.oracle(x_t / (1 - time), sigma)) / time  # v = (x_t − D)/t


def test_the_loss_is_that_of_the_velocity():
    denoiser = Denoiser(Velocity(oracles.two_by_two()), registry.create("scaling", "flow_matching")).double()
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 8, 2, generator=generator, dtype=torch.float64)
    t = torch.rand(8, generator=generator, dtype=torch.float64)
    loss = registry.create("loss", "denoising", weighting=registry.create("weighting", "flow_matching"))
    found = loss(denoiser, x0, t / (1 - t), noise).loss
    x_t = (1 - t[:, None]) * x0 + t[:, None] * noise
    expected = (denoiser.network(x_t, t) - (noise - x0)).square().mean(1)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_eulers_steps_are_those_of_diffusers():
    from diffusers import FlowMatchEulerDiscreteScheduler

    oracle = oracles.two_by_two()
    sigmas = registry.create("schedule", "flow_matching", sigma_max=50.0)(12)
    start = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = registry.create("sampler", "euler")(
        Denoiser(oracle.network, registry.create("scaling", "score")).double(), sigmas[0] * start, sigmas
    )
    public = FlowMatchEulerDiscreteScheduler()
    public.set_timesteps(sigmas=(sigmas / (1 + sigmas))[:-1].tolist())
    velocity = Velocity(oracle)
    x_t = sigmas[0] * start / (1 + sigmas[0])
    for time in public.timesteps:
        t = torch.full((5,), time.item() / 1000, dtype=torch.float64)
        x_t = public.step(velocity(x_t, t), time, x_t).prev_sample
    torch.testing.assert_close(ours, x_t, rtol=0, atol=1e-5)  # diffusers' times are float32
