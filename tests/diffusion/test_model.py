"""A model samples from its own flow, whatever the family."""

import pytest
import torch

import flowdiff
from flowdiff import registry
from flowdiff.errors import ConfigurationError
from flowdiff.noise import generators, randn
from flowdiff.testing.inputs import perturb

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


@pytest.mark.parametrize("flow", ["realnvp", "tarflow"])
def test_a_start_that_is_guided_inside_the_flow(flow):
    """At flow_scale=1, whatever else guides, the start is the flow's own sample bit for bit; above it is another."""
    model = assembled(flow)
    perturb(model.network.flow, 0.3)

    def start(guidance=None):
        seen = []
        model.sample(3, start="flow", sigma_start=0.5, guidance=guidance, callback=lambda *step: seen.append(step))
        return seen[0][2]

    def cfg(**settings):
        return registry.create("guidance", "cfg", denoiser=model, null=model.conditioner.null, **settings)

    def around(guide):
        runtime = {"denoiser": model, "classes": lambda: model.cond_of(torch.arange(10)), "load": lambda run: model}
        settings = {"run": "itself", "inner": {"name": "cfg"}}
        return registry.create("guidance", "autoguidance", **runtime, guided=lambda inner: guide, **settings)

    own = start()
    assert torch.equal(start(cfg(scale=3.0)), own)
    guided = [start(cfg(flow_scale=scale)) for scale in (2.0, 4.0)]
    assert all(x.isfinite().all() and not torch.allclose(x, own, atol=1e-2) for x in guided)
    assert not torch.allclose(*guided, atol=1e-2)
    assert torch.equal(start(around(cfg(flow_scale=2.0))), guided[0])  # a guide around it starts where it starts
