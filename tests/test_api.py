"""flowdiff from Python: the same functions, the same sentences, the same samples."""

import pytest
import torch
from runs import TINY, TINY_DIGITS, train

import flowdiff
from flowdiff import registry
from flowdiff.errors import ConfigurationError, NotADensity, RunError
from flowdiff.models.flows.coupling import Coupling


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory):
    folder = tmp_path_factory.mktemp("api") / "run"
    train(folder, *TINY_DIGITS)
    return flowdiff.load(folder)


def test_build():
    engine = flowdiff.build("flow=realnvp", "dataset=digits")
    x, sigma = torch.randn(2, 1, 8, 8), torch.ones(2)
    cond = engine.conditioner(torch.tensor([1, 2]))
    assert engine.denoiser(x, sigma, cond).shape == x.shape
    assert engine.denoiser.network.log_prob(x, sigma, cond).shape == (2,)
    assert engine.measure() == pytest.approx(0.798, abs=0.01)
    with pytest.raises(ConfigurationError, match="did you mean 'realnvp'"):
        flowdiff.build("flow=reelnvp")


def test_the_default_flow_takes_the_number_of_layers_and_the_activation():
    """flow.n_flows is its number of couplings, and activation the nonlinearity of their nets."""

    def density(*overrides):
        network = flowdiff.build("conditioner=none", *overrides).denoiser.network
        generator = torch.Generator().manual_seed(0)
        for p in network.parameters():  # far from the identity, where a flow starts with any nets
            torch.nn.init.normal_(p, std=0.1, generator=generator)
        couplings = sum(isinstance(part, Coupling) for part in network.modules())
        return couplings, network.log_prob(torch.linspace(-1, 1, 64).view(1, 1, 8, 8), torch.ones(1)).item()

    assert [density()[0], density("flow.n_flows=5")[0]] == [6, 5]
    swish, elu = density("flow.n_flows=2")[1], density("flow.n_flows=2", "activation=elu")[1]
    assert abs(swish - elu) > 0.01


def test_a_zca_whitened_flow_starts_at_the_wiener_filter():
    from flowdiff.testing.oracles import Gaussian

    engine = flowdiff.build("flow=linear_activation", "dataset=digits", "conditioner=none")
    engine.measure()
    x = engine.data.to_model(engine.data.train[:].x, torch.Generator().manual_seed(0)).flatten(1).double()
    wiener = Gaussian(x.mean(0), torch.cov(x.T, correction=0))
    sigma = torch.tensor([0.1, 1.0, 10.0])
    noised = engine.data.to_model(engine.data.test[:3].x) + sigma[:, None, None, None]
    D = engine.denoiser.eval()(noised, sigma)
    # The two draw other dequantisation noise, which moves the statistics by 1 %.
    assert torch.allclose(D.flatten(1), wiener(noised.flatten(1), sigma), atol=0.02)


def test_sample(denoiser):
    images = flowdiff.sample(denoiser, 5, sampler="heun", num_steps=2, label=3)
    assert images.shape == (5, 1, 8, 8)
    assert torch.equal(images, flowdiff.sample(denoiser, 5, sampler="heun", num_steps=2, label=[3] * 5, batch_size=5))


def test_samples_do_not_depend_on_the_batch_size(denoiser):
    one = flowdiff.sample(denoiser, 5, num_steps=2, batch_size=2)
    other = flowdiff.sample(denoiser, 5, num_steps=2, batch_size=5)
    # Other batch sizes take other matrix kernels: equal but for float32 rounding, magnified by σ = 80.
    assert torch.allclose(one, other, rtol=1e-3, atol=1e-2)


def test_guidance_and_flow_start(denoiser):
    plain = flowdiff.sample(denoiser, 4, num_steps=2, guidance="cfg", scale=1.0)
    assert torch.allclose(plain, flowdiff.sample(denoiser, 4, num_steps=2), atol=1e-4)
    assert torch.isfinite(flowdiff.sample(denoiser, 4, num_steps=2, start="flow", sigma_start=0.5)).all()


def test_sentences(denoiser):
    with pytest.raises(ConfigurationError, match="num_step is not a setting of sampling: did you mean 'num_steps'"):
        flowdiff.sample(denoiser, 1, num_step=3)
    with pytest.raises(ConfigurationError, match="out of range"):
        flowdiff.sample(denoiser, 1, label=11)
    with pytest.raises(ConfigurationError, match=r"did you mean 'heun'"):
        flowdiff.sample(denoiser, 1, sampler="hein")
    with pytest.raises(RunError, match="does not exist"):
        flowdiff.load("nowhere")


def test_raw_networks_say_that_they_have_no_density():
    engine = flowdiff.build(*TINY[:4], "network=mlp", "scaling=edm")
    x = torch.zeros(2, 2)
    with pytest.raises(NotADensity):
        engine.denoiser.log_prob(x, torch.ones(2), engine.conditioner(torch.tensor([0, 1])))


def test_a_model_of_discrete_levels_is_sampled_at_these():
    engine = flowdiff.build(*TINY[:4], "sigma_sampler=discrete")
    engine.measure()
    seen = []
    engine.denoiser.sample(2, callback=lambda i, sigma, x, D: seen.append(sigma))
    levels = registry.create("sigma_sampler", "discrete").levels
    assert len(seen) > 3
    assert all(float((levels - sigma).abs().min()) < 1e-9 for sigma in seen)


def test_levels_are_measured_once_for_a_run(denoiser):
    settings = {"schedule": "optimal", "num_levels": 8, "num_trajectories": 4, "sampler": "euler", "num_steps": 4}
    first = flowdiff.sample(denoiser, 3, **settings)
    assert denoiser.levels_file.parent.joinpath("config.yaml").is_file()
    again = flowdiff.load(denoiser.levels_file.parent)
    again._walk = None  # there is nothing left to measure
    assert torch.equal(flowdiff.sample(again, 3, **settings), first)
