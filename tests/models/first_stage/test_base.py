"""The first stage: chunks, scale, and which of its weights are in the checkpoint of the run that uses it."""

import copy
import math

import linear_gaussian
import pytest
import torch
from small_models import small_vae
from torch import nn

from flowdiff import registry
from flowdiff.models.autoencoder.posterior import Posterior
from flowdiff.models.first_stage.base import AutoencoderStage
from flowdiff.noise import generators

X = torch.rand(11, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def vae(**settings):
    return small_vae(**settings).autoencoder


def stage(autoencoder=None, **settings):
    given = {"scale": "channel", "chunk_size": 4, "precision": "float32", "cache_dir": "unused", **settings}
    return AutoencoderStage(autoencoder or vae(), **given)


def test_chunks_limit_the_batch_size_and_do_not_change_results_and_half_precision_hardly_does():
    autoencoder = vae()
    z = torch.randn(11, 5, generator=torch.Generator().manual_seed(1))
    whole = stage(autoencoder, chunk_size=11)
    expected = whole.decode(z), *whole.posterior(X), whole.reconstruct(X)
    parts, sizes = stage(autoencoder, chunk_size=4), {"decoder": 0, "encoder": 0}
    for name in sizes:
        getattr(autoencoder, name).register_forward_pre_hook(
            lambda _, args, name=name: sizes.update({name: max(sizes[name], len(args[0]))})
        )
    # The order of summation depends on the batch size.
    for found, one in zip((parts.decode(z), *parts.posterior(X), parts.reconstruct(X)), expected, strict=True):
        torch.testing.assert_close(found, one, rtol=1e-5, atol=1e-5)
    assert sizes == {"decoder": 4, "encoder": 4}
    assert parts.decode(z[:0]).shape == (0, 1, 8, 8)
    first = parts.encode(X, generators(3, range(11)))  # a sample depends only on its generator
    torch.testing.assert_close(first[4:7], parts.encode(X[4:7], generators(3, range(4, 7))), atol=1e-5, rtol=1e-5)
    half = stage(precision="bfloat16").reconstruct(X)
    assert half.dtype == torch.float32
    assert 0 < (half - expected[-1]).abs().max() < 0.1  # 8 bits of mantissa through ten layers


@pytest.mark.parametrize(("how", "same"), [("channel", False), ("global", True)])
def test_measured_latents_have_mean_0_and_deviation_1(how, same):
    torch.manual_seed(1)
    mean = torch.randn(4000, 2, 3, 3) * torch.tensor([3.0, 0.1]).view(2, 1, 1) + 5
    posterior = Posterior(mean, torch.full_like(mean, math.log(0.04)))
    maps = stage(vae(latent_dim=None, latent_channels=2), scale=how)
    maps.fit([Posterior(*(t[:3000] for t in posterior)), Posterior(*(t[3000:] for t in posterior))], X)
    z = maps.scaled(posterior.sample(torch.randn(4000, 2, 3, 3)))
    spread = z.transpose(0, 1).flatten(1).std(1) if not same else z.std().expand(2)
    mean = z.mean((0, 2, 3)) if not same else z.mean().expand(2)
    torch.testing.assert_close(spread, torch.ones(2), atol=2e-2, rtol=0)  # 36,000 numbers per channel
    torch.testing.assert_close(mean, torch.zeros(2), atol=2e-2, rtol=0)
    assert bool(maps.scale[0] == maps.scale[1]) is same
    torch.testing.assert_close(maps.latent(z), maps.latent(maps.scaled(maps.latent(z))))


def test_a_frozen_autoencoder_is_not_saved_or_copied_but_moves_to_devices():
    model = nn.ModuleDict({"first_stage": stage()})
    assert set(model.state_dict()) == {f"first_stage.{name}" for name in ("shift", "scale", "law.log_scale")}
    twin = copy.deepcopy(model)
    assert twin["first_stage"].autoencoder is model["first_stage"].autoencoder
    assert not any(p.requires_grad for p in model["first_stage"].autoencoder.parameters())
    model.to("meta")
    assert next(model["first_stage"].autoencoder.parameters()).device.type == "meta"


def test_the_key_depends_on_the_weights_and_not_on_measured_numbers():
    one = stage()
    key = one.key()
    one.law.log_scale.data.fill_(0.5)
    assert one.key() == key
    assert stage(precision="bfloat16").key() != key
    next(one.autoencoder.encoder.parameters()).data[0] += 1
    assert one.key() != key


def test_scaling_latent_and_image_have_the_right_densities():
    maps = stage(vae(latent_dim=None, latent_channels=2))
    maps.shift.copy_(torch.tensor([1.0, -2.0]))
    maps.scale.copy_(torch.tensor([0.5, 3.0]))
    latent = torch.randn(1, 2, 4, 4)
    jacobian = torch.func.jacrev(lambda flat: maps.scaled(flat.view(1, 2, 4, 4)).flatten())(latent.flatten())
    assert maps.log_volume == pytest.approx(jacobian.slogdet().logabsdet.item(), rel=1e-5)
    noise = torch.randn(11, 2, 4, 4, generator=torch.Generator().manual_seed(2))
    found = maps.sample_latent(X, noise)
    mean, log_variance = maps.posterior(X)
    scale = maps.scale.view(2, 1, 1)
    of_z = torch.distributions.Normal(maps.scaled(mean), scale * (0.5 * log_variance).exp())
    torch.testing.assert_close(found.log_posterior, of_z.log_prob(found.z).flatten(1).sum(1), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found.log_likelihood, maps.log_likelihood(X, maps.latent(found.z)), rtol=1e-5, atol=1e-3)
    assert not found.z.requires_grad
    autoencoder, x, latent = linear_gaussian.vae().float(), torch.randn(3, 4), torch.randn(3, 2)
    expected = autoencoder.law.log_prob(x, autoencoder.decoded(latent))
    torch.testing.assert_close(stage(autoencoder, scale="none").log_likelihood(x, latent), expected)


def test_a_trained_autoencoder_is_saved_copied_and_differentiated():
    trained = stage(train=True)
    of_autoencoder = {f"held.module.{name}" for name in trained.autoencoder.state_dict()}
    assert set(trained.state_dict()) == of_autoencoder | {"shift", "scale", "law.log_scale"}
    assert len(list(trained.parameters())) == len(of_autoencoder)  # the scale of the law is counted once
    assert all(p.requires_grad for p in trained.parameters())
    twin = copy.deepcopy(trained)
    assert twin.autoencoder is not trained.autoencoder
    assert twin.law is twin.autoencoder.law
    assert trained.sample_latent(X, torch.zeros(11, 5)).z.requires_grad
    for made in (trained.encode(X), trained.decode(torch.zeros(1, 5)), trained.reconstruct(X)):
        assert not made.requires_grad


def test_two_stages_share_a_space_if_autoencoder_and_scale_are_equal():
    one, other = stage(vae()), stage(vae())
    identity = registry.create("first_stage", "identity", shape=(1, 8, 8))
    assert identity.latent_shape == (1, 8, 8)
    assert torch.equal(identity.decode(identity.encode(X)), X)
    assert one.shares_space(other)
    assert identity.shares_space(identity)
    assert not one.shares_space(identity)
    assert not identity.shares_space(one)
    one.scale.mul_(1.1)
    assert one.shares_space(other)  # `other` is not measured yet, and the same data will give it the same scale
    assert not one.shares_space(stage(vae(), scale="none"))
    other.scale.mul_(1.11)
    assert not one.shares_space(other)
    other.scale.copy_(one.scale)
    assert one.shares_space(other)
    moved = vae()
    with torch.no_grad():
        next(moved.encoder.parameters()).add_(1)
    assert not one.shares_space(stage(moved))
