"""Measurements of an autoencoder: the network that is trained, or the frozen one that encodes a model's latents.

reconstruction_mse     E‖x − E[x|m(x)]‖²/D over the test split, at the midpoints of the grey levels
kl                     E[KL(q(ℓ|x) ‖ N(0, I))], nats per image
active_units           number of dimensions of ℓ whose mean m(x) depends on x: Var_x m > 0.01
bpd_bound              E_q[log p(ℓ) + log p(x|ℓ) − log q(ℓ|x)] of the dequantised test split, as bits/dim

bpd_bound is an upper bound of the bits/dim of p(x) = ∫ p(x|ℓ) p(ℓ) dℓ, not an exact density: compare it with other
bounds of this kind; it lies above a bpd. p(ℓ) is N(0, I) for a plain autoencoder. For a density of latents it is that
density, log p(ℓ) = log p_σ(z) + ln|det ∂z/∂ℓ|.

Source of the active units: Burda, Grosse & Salakhutdinov, Importance weighted autoencoders, 2016.
"""

from __future__ import annotations

import math
from itertools import chain

import torch
from torch import Tensor

from flowdiff.data.base import Batch, DataModule
from flowdiff.data.readers import split_batches
from flowdiff.diffusion.model import ConditionedDenoiser
from flowdiff.evaluation import ranks
from flowdiff.evaluation.densities.likelihood import Likelihood, mean_and_error, per_dimension
from flowdiff.models.autoencoder.base import Autoencoder
from flowdiff.models.autoencoder.posterior import standard_normal
from flowdiff.models.first_stage.base import AutoencoderStage
from flowdiff.noise import generators, randn

MIN_VARIANCE_OF_ACTIVE_UNIT = 0.01  # variance of a unit's mean over the data


@torch.no_grad()
def reconstruct(autoencoder: Autoencoder | AutoencoderStage, x: Tensor, batch_size: int) -> Tensor:
    """E[x|m(x)] of images (N, *shape), on x's device."""
    device = device_of(autoencoder)
    return torch.cat([autoencoder.reconstruct(part.to(device)).to(x.device) for part in x.split(batch_size)])


@torch.no_grad()
def latent_statistics(
    autoencoder: Autoencoder | AutoencoderStage, data: DataModule, batch_size: int
) -> tuple[dict[str, float], Tensor]:
    """(reconstruction_mse, kl, active_units and latent_dims of the test split, its reconstructions)."""
    device = device_of(autoencoder)
    means, kls, errors, reconstructions = [], [], [], []
    for x, _ in split_batches(data, data.test, batch_size):
        posterior = autoencoder.posterior(x.to(device))
        means.append(posterior.mean.flatten(1).double().cpu())
        kls.append(posterior.kl().flatten(1).sum(1).double().cpu())
        reconstructions.append(reconstruct(autoencoder, x, batch_size))
        errors.append((x - reconstructions[-1]).double().square().flatten(1).mean(1))
    mean = torch.cat(means)
    statistics = {
        "reconstruction_mse": torch.cat(errors).mean().item(),
        "kl": torch.cat(kls).mean().item(),
        "active_units": int((mean.var(0) > MIN_VARIANCE_OF_ACTIVE_UNIT).sum()),
        "latent_dims": mean.shape[1],
    }
    return statistics, torch.cat(reconstructions)


@torch.no_grad()
def image_bound(
    denoiser: ConditionedDenoiser, data: DataModule, sigma: float, *, seed: int, batch_size: int
) -> Likelihood:
    """The bound on the images, with one ε each.

    p(ℓ) is N(0, I) if the network is an autoencoder, else the density p_σ of the latents.
    The dequantisation and the encoding of sample i depend on (seed, i) only.

    Raises:
        NotADensity: the model of the latents is not a density.
    """
    batches = []
    for indices in ranks.mine(torch.arange(len(data.test))).split(batch_size):
        batch = data.test[indices]
        sources = generators(seed, indices.tolist())
        x = data.dequantize(batch.x, sources)
        batches.append(_bound(denoiser, x, batch, sigma, sources).double().cpu())
    bounds = ranks.gather(torch.cat(batches), len(data.test))
    metric, per_dim = per_dimension(bounds, math.prod(data.shape), data.levels)
    return Likelihood(f"{metric}_bound", *mean_and_error(per_dim), len(per_dim))


def _bound(
    denoiser: ConditionedDenoiser, x: Tensor, batch: Batch, sigma: float, sources: list[torch.Generator]
) -> Tensor:
    """log p(ℓ) + log p(x|ℓ) − log q(ℓ|x) at ℓ ~ q(ℓ|x), nats (B,)."""
    autoencoder = denoiser.autoencoder
    assert autoencoder is not None  # the callers check this
    x = x.to(device_of(autoencoder))
    noise = randn((len(x), *autoencoder.latent_shape), sources, device=x.device)
    if isinstance(autoencoder, Autoencoder):
        posterior = autoencoder.posterior(x)
        latent = posterior.sample(noise)
        log_likelihood = autoencoder.law.log_prob(x, autoencoder.decoded(latent))
        return log_likelihood + standard_normal(latent) - posterior.log_prob(latent)
    drawn = autoencoder.sample_latent(x, noise)
    return drawn.bound(denoiser.log_prob(drawn.z, x.new_full((len(x),), sigma), denoiser.cond_of_batch(batch)))


def device_of(autoencoder: Autoencoder | AutoencoderStage) -> torch.device:
    """The device of its weights."""
    return next(chain(autoencoder.parameters(), autoencoder.buffers())).device  # a frozen one has buffers only
