"""The Fokker–Planck term of a loss: zero for one diffusion, without bias, for a part of the batch."""

import pytest
import torch
from small_models import flow_of, score_flow_of
from torch import nn

from flowdiff import registry
from flowdiff.diffusion.denoiser import Denoiser
from flowdiff.diffusion.fokker_planck import residual
from flowdiff.diffusion.losses.base import RESIDUAL_NEEDS_DENSITY
from flowdiff.diffusion.losses.learned_prior import LearnedPrior
from flowdiff.diffusion.losses.one_diffusion import OneDiffusion
from flowdiff.errors import ConfigurationError, NotADensity
from flowdiff.models.autoencoder.decoder_laws import GaussianLaw
from flowdiff.models.autoencoder.vae import VAE
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.first_stage.base import AutoencoderStage
from flowdiff.noise import generators
from flowdiff.testing.inputs import perturb
from flowdiff.testing.models import ScoreOf
from flowdiff.testing.oracles import two_by_two

OF_A_DENSITY = [
    name
    for name in registry.names("loss")
    if RESIDUAL_NEEDS_DENSITY in registry.requirements(registry.resolve("loss", name))
]


def build(name):
    weighting = registry.create("weighting", "unit")
    return registry.create("loss", name, weighting=weighting)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def model(far=True, cond_dim=0):
    """A score flow of the plane in float64, far from any diffusion unless it is at its start."""
    network = score_flow_of(flow_of("realnvp", (2,), 8, hidden=16, n_flows=3), (2,), cond_dim=cond_dim)
    if far:
        perturb(network.flow, 0.5)
    return Denoiser(network, registry.create("scaling", "score")).double().train()


def batch(n=8):
    x0 = torch.randn(n, 2, generator=seeded(1), dtype=torch.float64)
    return x0, torch.logspace(-1, 1, n, dtype=torch.float64)


def test_all_losses_of_densities_take_it():
    assert OF_A_DENSITY == ["denoising", "hybrid", "nll", "score_matching"]


@pytest.mark.parametrize("name", OF_A_DENSITY)
def test_it_adds_the_weighted_term_to_the_other_loss_with_the_same_noise(name):
    (x0, sigma), denoiser = batch(), model()
    plain, loss = build(name), OneDiffusion(build(name), weight=0.3, share=1.0)
    noise = loss.draw_noise(x0, seeded())
    own = plain.draw_noise(x0, seeded())
    assert torch.equal(noise[:, :2], own)
    output, other = loss(denoiser, x0, sigma, noise), plain(denoiser, x0, sigma, own)
    torch.testing.assert_close(output.loss, other.loss + 0.3 * output.parts["fokker_planck"])
    assert output.parts.keys() == {*other.parts, "fokker_planck"}
    assert output.parts["fokker_planck"].abs().max() > 1e-3


def mean_over_signs(denoiser, x0, sigma):
    """The mean of the term over all pairs of signs, which in the plane are (1, 1) and (1, −1) up to a factor; and x."""
    loss = OneDiffusion(build("nll"), weight=1.0, share=1.0)
    noise = build("nll").draw_noise(x0, seeded())
    kinds = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    terms = [
        loss(denoiser, x0, sigma, torch.cat([noise, one.expand_as(x0), two.expand_as(x0)], 1)).parts["fokker_planck"]
        for one in kinds
        for two in kinds
    ]
    return torch.stack(terms).mean(0).detach(), x0 + sigma[:, None] * noise


def test_on_average_over_the_signs_it_is_the_square_per_dimension():
    (x0, sigma), denoiser = batch(), model()
    found, x = mean_over_signs(denoiser, x0, sigma)
    right = (sigma * residual(denoiser.log_prob, x, sigma)) ** 2 / 2
    torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-12)
    assert right.max() > 1e-2


def test_it_vanishes_for_one_diffusion():
    oracle, sigma = two_by_two(), batch()[1]
    denoiser = Denoiser(oracle.network, registry.create("scaling", "score")).double()
    x0 = oracle.sample(torch.full((8,), 1e-3, dtype=torch.float64), generator=seeded())
    found, _ = mean_over_signs(denoiser, x0, sigma)
    assert float(found.abs().max()) < 1e-12


def test_a_share_of_the_batch_has_it_and_the_mean_is_that_of_the_share():
    (x0, sigma), denoiser = batch(), model()
    whole, part = (OneDiffusion(build("nll"), weight=1.0, share=share) for share in (1.0, 0.3))
    noise = whole.draw_noise(x0, seeded())
    fewer = noise.clone()
    fewer[3:, 2:] = 0  # 3 of 8 is the share, rounded up
    assert ((part.draw_noise(x0, seeded())[:, 2:] == 0).all(1) == (torch.arange(8) >= 3)).all()
    full, found = (loss(denoiser, x0, sigma, n).parts["fokker_planck"] for loss, n in ((whole, noise), (part, fewer)))
    torch.testing.assert_close(found[:3], full[:3] * 8 / 3)
    assert not found[3:].any()
    torch.testing.assert_close(found.mean(), full[:3].mean())
    rest = slice(4, 8)  # a part of a batch, in which a diverged step is searched, may have none
    alone = part(denoiser, x0[rest], sigma[rest], fewer[rest])
    torch.testing.assert_close(alone.loss, build("nll")(denoiser, x0[rest], sigma[rest], fewer[rest, :2]).loss)


def test_one_step_in_several_has_it_so_many_times_as_strong():
    (x0, sigma), denoiser = batch(), model()
    loss = OneDiffusion(build("nll"), weight=0.3, share=1.0, every=3)
    noise = loss.draw_noise(x0, seeded())
    always = loss(denoiser, x0, sigma, noise)
    steps = [loss.at(step)(denoiser, x0, sigma, noise) for step in range(6)]
    for step, output in enumerate(steps):
        times = 0 if step % 3 else 3
        torch.testing.assert_close(output.parts["fokker_planck"], times * always.parts["fokker_planck"])
    mean = torch.stack([output.loss for output in steps]).mean(0)
    torch.testing.assert_close(mean, always.loss)


def test_generators_of_samples_draw_their_own_signs():
    x0 = batch()[0]
    loss = OneDiffusion(build("nll"), weight=1.0, share=0.5)
    assert torch.equal(loss.draw_noise(x0, generators(0, range(8))), loss.draw_noise(x0, generators(0, range(8))))


def test_its_gradient_reaches_the_network_and_the_condition():
    (x0, sigma), denoiser = batch(), model(cond_dim=3)
    vector = torch.randn(8, 3, generator=seeded(3), dtype=torch.float64, requires_grad=True)
    loss = OneDiffusion(build("nll"), weight=1.0, share=1.0)
    term = loss(denoiser, x0, sigma, loss.draw_noise(x0, seeded()), Conditioning(vector)).parts["fokker_planck"].sum()
    term.backward()
    assert vector.grad is not None
    assert vector.grad.any(1).all()
    assert all(p.grad is not None and bool(p.grad.any()) for p in denoiser.network.flow.parameters())


def test_training_by_it_alone_lowers_it():
    (x0, sigma), denoiser = batch(32), model()
    loss = OneDiffusion(build("nll"), weight=1.0, share=1.0)
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=3e-3)
    values = []
    for _ in range(30):
        noise = loss.draw_noise(x0, seeded(7))
        term = loss(denoiser, x0, sigma, noise).parts["fokker_planck"].mean()
        optimizer.zero_grad()
        term.backward()
        optimizer.step()
        x = x0 + sigma[:, None] * noise[:, :2]
        values.append(float(((sigma * residual(denoiser.log_prob, x, sigma)) ** 2).mean()))
    assert values[-1] < 0.5 * values[0]


def test_it_goes_behind_an_autoencoder_that_is_trained_along():
    torch.manual_seed(0)
    autoencoder = VAE((4,), (2,), nn.Linear(4, 4), nn.Linear(2, 4), GaussianLaw()).double()
    given = {"scale": "none", "chunk_size": 4, "precision": "float32", "cache_dir": "unused"}
    stage = AutoencoderStage(autoencoder, train=True, **given)
    x0, sigma = torch.randn(8, 4, generator=seeded(), dtype=torch.float64), batch()[1]
    plain, loss = (LearnedPrior(own, stage, 1e-2) for own in (build("nll"), OneDiffusion(build("nll"), 0.3, 0.5)))
    noise = loss.draw_noise(x0, seeded(1))
    assert torch.equal(noise[:, :4], plain.draw_noise(x0, seeded(1)))
    output, other = (one(model(), x0, sigma, n) for one, n in ((loss, noise), (plain, noise[:, :4])))
    torch.testing.assert_close(output.loss, other.loss + 0.3 * output.parts["fokker_planck"])


def test_a_raw_network_is_refused():
    raw = Denoiser(ScoreOf(two_by_two().network), registry.create("scaling", "edm")).double()
    loss = OneDiffusion(build("denoising"), weight=1.0, share=1.0)
    x0, sigma = batch()
    with pytest.raises(NotADensity, match="only network=score_flow"):
        loss(raw, x0, sigma, loss.draw_noise(x0, seeded()))


def test_offset_noise_solves_another_equation():
    weighting = registry.create("weighting", "edm")
    with pytest.raises(ConfigurationError, match="do not go together"):
        registry.create("loss", "denoising", weighting=weighting, offset_noise=0.1, fokker_planck=0.1)
