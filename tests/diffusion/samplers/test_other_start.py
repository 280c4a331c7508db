"""start=flow with the density of another model: its exact sample, which this model denoises; and what does not fit."""

import pytest
import torch

import flowdiff
from flowdiff import config, registry
from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioners.classes import OneHot
from flowdiff.noise import generators
from flowdiff.testing import oracles
from flowdiff.testing.inputs import perturb
from flowdiff.testing.models import ScoreOf, model_of
from flowdiff.training.assembly import guide_by

MIXTURE = oracles.two_by_two()
EULER = registry.create("sampler", "euler", num_steps=1)


class Reversed(OneHot):
    """Another embedding of the same classes: class k is the vector of class 3 − k."""

    def __init__(self):
        super().__init__(4, drop=0.0)
        self.rows = self.rows.flip(0)


def raw(conditioner=None, **settings):
    return model_of(ScoreOf(MIXTURE.network), shape=(2,), conditioner=conditioner or OneHot(4, drop=0.0), **settings)


def flow(conditioner=None, shape=(2,), **settings):
    other = oracles.Mixture(MIXTURE.means.flip(0), MIXTURE.stds.flip(0))
    return model_of(other.network, shape=shape, conditioner=conditioner or Reversed(), **settings)


def test_it_begins_with_the_other_models_sample_of_each_class_and_denoises_it():
    seen, model, other = [], raw(), flow()
    options = {"sampler": EULER, "start": "flow", "sigma_start": 0.2, "start_model": other}
    x0 = model.sample(8, seed=3, callback=lambda *step: seen.append(step), **options)
    ((_, sigma, x, D),) = seen
    level, labels = torch.full((8,), 0.2), torch.arange(8) % 4
    assert sigma == 0.2
    torch.testing.assert_close(x, other.network.sample(level, other.cond_of(labels), generators(3, range(8))))
    torch.testing.assert_close(D, model(x, level, model.cond_of(labels)))
    assert torch.equal(x0, D)
    assert ((x - MIXTURE.means[labels]).norm(dim=1) < 5 * (MIXTURE.stds[labels] ** 2 + 0.2**2).sqrt()).all()
    torch.testing.assert_close(model.sample(8, seed=3, batch_size=3, **options), x0)


def test_guidance_guides_the_denoiser_and_flow_scale_the_flow():
    """With flow_scale the start is what the flow's own model begins with, in its own conditions."""
    tiny = ["sampler.num_steps=1", "accelerator=cpu", "conditioner.drop=0.2"]
    other = flowdiff.build("flow=realnvp", "flow.n_flows=2", *tiny).denoiser.eval()
    model = flowdiff.build("network=mlp", "network.width=16", "network.depth=1", "scaling=edm", *tiny).denoiser
    perturb(other.network.flow, 0.3)
    perturb(model.network, 0.3)

    def begin(of, start_model, **settings):
        seen = []
        guide = guide_by({**config.defaults("guidance", "cfg"), "scale": 1.0, **settings})(of, start_model)
        options = {"start": "flow", "sigma_start": 0.5, "start_model": start_model, "guidance": guide, "sampler": EULER}
        x0 = of.sample(3, clip=False, callback=lambda *step: seen.append(step), **options)
        return seen[0][2], x0

    plain, guided, flow_guided = (begin(model, other, **of) for of in ({}, {"scale": 3.0}, {"flow_scale": 2.0}))
    assert torch.equal(guided[0], plain[0])
    assert not torch.allclose(guided[1], plain[1], atol=1e-3)
    torch.testing.assert_close(flow_guided[0], begin(other, None, flow_scale=2.0)[0])
    assert not torch.allclose(flow_guided[0], plain[0], atol=1e-3)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"start_model": flow(), "start": "noise"}, "start_model was given with start=noise, .* set start=flow"),
        ({"start_model": raw()}, "start_model has no density to draw from: give a run of network=score_flow"),
        ({"start_model": flow(shape=(1, 8, 8))}, "of samples of shape 1×8×8, and the model that denoises .* shape 2:"),
        ({"start_model": flow(OneHot(3, drop=0.0))}, "start_model knows 3 classes, and the model that denoises 4"),
        ({"start_model": flow(sigma_data=0.6)}, "root mean square 0.6, and the model that denoises on data of 0.5"),
        ({"start_model": flow(), "sigma_start": 900.0}, "a start at sigma=900 is not allowed"),
    ],
)
def test_what_does_not_fit_is_a_sentence(given, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        raw().sample(2, **{"start": "flow", "sigma_start": 0.2, **given})
