"""Losses: closed-form values on an oracle, the same gradient for equal objectives, refusals."""

import linear_gaussian
import pytest
import torch
from small_models import flow_of, score_flow_of
from torch import nn

from flowdiff import registry
from flowdiff.diffusion.denoiser import Denoiser
from flowdiff.diffusion.losses.base import NEEDS_AUTOENCODER, NEEDS_CLASSIFIER, NEEDS_DENSITY, NEEDS_IMAGES_AND_TEXT
from flowdiff.diffusion.losses.learned_prior import LearnedPrior
from flowdiff.errors import NotADensity
from flowdiff.models.autoencoder.decoder_laws import GaussianLaw
from flowdiff.models.autoencoder.vae import VAE
from flowdiff.models.first_stage.base import AutoencoderStage
from flowdiff.models.networks.base import AutoencoderNetwork
from flowdiff.testing.models import ScoreOf
from flowdiff.testing.oracles import Gaussian


def losses_with(*needs):
    """Names of the losses that have one of these requirements."""
    found = {name: registry.requirements(registry.resolve("loss", name)) for name in registry.names("loss")}
    return [name for name, own in found.items() if set(needs) & set(own)]


OTHERS = losses_with(NEEDS_CLASSIFIER, NEEDS_AUTOENCODER, NEEDS_IMAGES_AND_TEXT)
TAUGHT = ["consistency_distillation", "inverse_distillation", "scm"]  # they need a run, or refuse the flow of the test
OF_DENOISERS = [name for name in registry.names("loss") if name not in (*OTHERS, *TAUGHT)]


GAUSSIAN = Gaussian(torch.tensor([0.5, -0.2]), torch.tensor([[1.0, 0.3], [0.3, 0.5]])).network
RAW = Denoiser(ScoreOf(GAUSSIAN), registry.create("scaling", "edm")).double()


@pytest.fixture
def denoiser():
    return Denoiser(GAUSSIAN, registry.create("scaling", "score")).double()


def prior(dim, whitening="isotropic"):
    """A score flow of vectors (dim,), which begins as N(0, 1 + σ²)."""
    network = score_flow_of(flow_of("linear_activation", (dim,), 8, act="softplus"), (dim,), whitening)
    return Denoiser(network, registry.create("scaling", "score")).train()


def perturbed(denoiser):
    for parameter in denoiser.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return denoiser


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    noise = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    return x0, torch.tensor([0.01, 0.1, 0.5, 2.0, 50.0], dtype=torch.float64), noise


def build(name, weighting=None, **settings):
    weighting = weighting or ("unit" if name == "nll" else "edm")
    return registry.create("loss", name, weighting=registry.create("weighting", weighting), **settings)


def test_denoising_and_score_matching(denoiser, batch):
    x0, sigma, noise = batch
    D = denoiser(x0 + sigma[:, None] * noise, sigma)
    weight = (sigma**2 + 1) / sigma**2  # EDM's, at sigma_data = 1
    for norm, distance in (("l2", (D - x0) ** 2), ("l1", (D - x0).abs())):
        loss = build("denoising", norm=norm)(denoiser, x0, sigma, noise).loss
        assert torch.allclose(loss, weight * distance.mean(1))
    # σ²‖s − (x0 − x)/σ²‖² = σ⁻²‖D − x0‖², by Tweedie.
    matching = build("score_matching")(denoiser, x0, sigma, noise).loss
    assert torch.allclose(matching, sigma**-2 * ((D - x0) ** 2).mean(1))


def test_nll_and_hybrid(denoiser, batch):
    x0, sigma, noise = batch
    nll = build("nll")(denoiser, x0, sigma, noise).loss
    assert torch.allclose(nll, -denoiser.log_prob(x0 + sigma[:, None] * noise, sigma) / 2)
    output = build("hybrid", nll_weight=0.3)(denoiser, x0, sigma, noise)
    assert torch.allclose(output.loss, build("denoising")(denoiser, x0, sigma, noise).loss + 0.3 * nll)
    assert set(output.parts) == {"denoising", "nll"}


@pytest.mark.parametrize("weighting", ["unit", "sigma", "noise_share"])
def test_nll_has_a_weight(denoiser, batch, weighting):
    weight = registry.create("weighting", weighting)(batch[1], denoiser.sigma_data)
    plain = build("nll")(denoiser, *batch).loss
    torch.testing.assert_close(build("nll", weighting)(denoiser, *batch).loss, weight * plain)
    if weighting == "unit":
        assert torch.equal(build("nll", weighting)(denoiser, *batch).loss, plain)


@pytest.mark.parametrize("name", losses_with(NEEDS_DENSITY))
def test_losses_of_a_density_refuse_a_raw_network(name, batch):
    with pytest.raises(NotADensity, match="only network=score_flow"):
        build(name)(RAW, *batch)


def test_a_learned_prior_has_to_be_a_density():
    loss, given = joint(VAE((4,), (2,), nn.Linear(4, 4), nn.Linear(2, 4), GaussianLaw()), build("denoising"))
    with pytest.raises(NotADensity, match="only network=score_flow"):
        loss(RAW, *given)


def test_offset_noise_is_common_to_a_channel():
    x0 = torch.zeros(400, 2, 8, 8)
    plain = build("denoising", offset_noise=0.0).draw_noise(x0, torch.Generator().manual_seed(0))
    offset = build("denoising", offset_noise=0.5).draw_noise(x0, torch.Generator().manual_seed(0))
    shift = offset - plain
    assert torch.allclose(shift, shift[..., :1, :1].expand_as(shift), atol=1e-6)
    assert abs(float(shift[..., 0, 0].std()) - 0.5) < 0.05  # 800 numbers: standard error 0.0125


@pytest.mark.parametrize("name", OF_DENOISERS)
def test_one_number_per_sample_whose_gradients_reach_all_of_the_network(name, batch):
    denoiser = perturbed(prior(2, "zca"))
    loss = build(name)(denoiser, *(v.float() for v in batch)).loss
    assert loss.shape == (5,)
    loss.mean().backward()
    assert not [key for key, p in denoiser.named_parameters() if p.grad is None or not p.grad.any()]


class LinearGaussian(AutoencoderNetwork):
    """A VAE with a known evidence as a network."""

    def __init__(self, **wrong):
        super().__init__()
        self.autoencoder = linear_gaussian.vae(**wrong)

    def forward(self, x, c_noise, cond=None):
        return self.autoencoder.reconstruct(x) - x

    def from_prior(self, n, generator=None):
        return self.autoencoder.decode(torch.randn(n, 2, generator=generator))


def elbo_terms(**settings):
    """loss=elbo of a fixed batch, with the autoencoder's own two terms beside it."""
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    denoiser = Denoiser(LinearGaussian(off=0.2), registry.create("scaling", "score"))
    terms = denoiser.network.autoencoder.elbo(x0, noise[:, :2])
    loss = registry.create("loss", "elbo", **{"kl_weight": 1.0, "warmup_steps": 0, "free_bits": 0.0, **settings})
    return loss, lambda loss: loss(denoiser, x0, torch.ones(6), noise), terms


def test_elbo_is_the_negative_bound_per_dimension_with_a_kl_that_is_warmed_up_beyond_free_bits():
    loss, of, terms = elbo_terms()
    out = of(loss)
    torch.testing.assert_close(out.loss, -terms.bound / 4)
    torch.testing.assert_close(out.parts["kl"] + out.parts["reconstruction"], -terms.bound)
    loss, of, terms = elbo_terms(kl_weight=0.5, warmup_steps=10)
    for step, weight in ((0, 0.0), (3, 0.15), (10, 0.5), (1000, 0.5)):
        expected = (weight * terms.kl.sum(1) - terms.log_likelihood) / 4
        torch.testing.assert_close(of(loss.at(step)).loss, expected)
    low, high = terms.kl.mean(0).min().item(), terms.kl.mean(0).max().item()
    between = (low + high) / 2  # only the larger term is above these free bits
    loss, of, _ = elbo_terms(free_bits=between)
    paid = 4 * of(loss).loss.mean() + terms.log_likelihood.mean()
    torch.testing.assert_close(paid, torch.tensor(between + high, dtype=torch.float64))


def joint(autoencoder, own):
    """The loss of a flow and of the autoencoder that is trained along, and what it is of."""
    given = {"scale": "none", "chunk_size": 4, "precision": "float32", "cache_dir": "unused"}
    loss = LearnedPrior(own, AutoencoderStage(autoencoder, train=True, **given), sigma_min=1e-4)
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(6, 4, generator=generator)
    return loss, (x0, torch.tensor([0.01, 0.1, 0.3, 1.0, 3.0, 10.0]), loss.draw_noise(x0, generator))


def test_with_the_true_prior_and_posterior_the_bound_is_the_evidence(monkeypatch):
    x0 = joint(linear_gaussian.vae(), build("nll"))[1][0]
    evidence = linear_gaussian.log_prob(x0.double())
    for name in ("W", "B"):  # with which the encoder computes
        monkeypatch.setattr(linear_gaussian, name, getattr(linear_gaussian, name).float())
    loss, (x0, sigma, noise) = joint(linear_gaussian.vae(), build("nll"))
    denoiser = prior(2)
    out = loss(denoiser, x0, sigma, noise)
    # For every sample, whatever its ε; in float32, and σ_min² = 1e-8 beside the prior's variance of 1.
    torch.testing.assert_close(out.parts["elbo"], -evidence.float() / 4, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.parts["kl"] + out.parts["reconstruction"], -evidence.float(), atol=1e-4, rtol=1e-5)
    z = loss.first_stage.sample_latent(x0, noise[:, :2]).z
    own = build("nll")(denoiser, z, sigma, noise[:, 2:]).loss
    torch.testing.assert_close(out.parts["latent_loss"], own)
    torch.testing.assert_close(out.loss, out.parts["elbo"] + own)


@pytest.mark.parametrize("own", ["denoising", "nll"])
def test_the_autoencoder_hears_the_bound_alone_and_the_flow_both(own):
    torch.manual_seed(1)
    autoencoder = VAE((4,), (2,), nn.Linear(4, 4), nn.Linear(2, 4), GaussianLaw())
    loss, given = joint(autoencoder, build(own))
    flow = perturbed(prior(2))

    def gradients(term):
        for parameter in (*autoencoder.parameters(), *flow.parameters()):
            parameter.grad = None
        term(loss(flow, *given)).mean().backward()
        found = [{name: p.grad for name, p in part.named_parameters()} for part in (autoencoder, flow)]
        assert all(g is not None and bool(g.any()) for part in found for g in part.values())
        return found

    (whole, of_flow), (bound, of_flow_by_bound) = gradients(lambda o: o.loss), gradients(lambda o: o.parts["elbo"])
    for name, gradient in whole.items():
        torch.testing.assert_close(gradient, bound[name], msg=name)
    assert any(not torch.allclose(of_flow[name], g) for name, g in of_flow_by_bound.items())
