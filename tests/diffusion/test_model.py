"""A model samples from its own flow, whatever the family."""

import pytest
import torch

import flowdiff
from flowdiff import registry
from flowdiff.errors import ConfigurationError
from flowdiff.noise import generators, randn

QUICK = ["sampler.num_steps=1", "flow.n_flows=1", "accelerator=cpu"]


def assembled(flow):
    """The untrained model of a family, of images where it takes them."""
    try:
        return flowdiff.build(f"flow={flow}", "dataset=digits", *QUICK).denoiser
    except ConfigurationError:
        return flowdiff.build(f"flow={flow}", "dataset=two_moons", *QUICK).denoiser


@pytest.mark.parametrize("flow", registry.names("flow"))
def test_sampling_starts_from_every_flow(flow):
    model, seen = assembled(flow), []
    shape = model.first_stage.latent_shape
    x0 = model.sample(3, seed=1, start="flow", sigma_start=0.5, callback=lambda *step: seen.append(step))
    assert x0.shape == (3, *shape)
    assert x0.isfinite().all()
    _, sigma, x, D = seen[0]
    assert sigma == 0.5
    # It starts at what the flow makes of the samples' own noise, and takes a step down to 0 by the same model.
    z = model.network.encode(x, torch.full((3,), 0.5), model.cond_of(torch.arange(3) % model.num_classes))
    # An iterated inverse is exact to its own tolerance.
    torch.testing.assert_close(z, randn((3, *shape), generators(1, range(3))), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(x0, D)
