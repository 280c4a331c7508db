"""What an autoencoder is worth: a network that is trained, or the frozen one that a model's latents come from.

reconstruction_mse     E‖x − E[x|m(x)]‖²/D over the test split, at the midpoints of the grey levels
kl                     E[KL(q(ℓ|x) ‖ N(0, I))], nats an image
active_units           dimensions of ℓ whose mean m(x) says something of x: Var_x m > 0.01
bpd_bound              E_q[log p(ℓ) + log p(x|ℓ) − log q(ℓ|x)] of the dequantised test split, as bits/dim

bpd_bound is an upper bound of the bits/dim that p(x) = ∫ p(x|ℓ) p(ℓ) dℓ needs, and no exact density: it compares with
other bounds of one kind, and lies above a bpd. p(ℓ) is N(0, I) of an autoencoder by itself, and of a density of latents
that density, log p(ℓ) = log p_σ(z) + ln|det ∂z/∂ℓ|.
Source of the active units: Burda, Grosse & Salakhutdinov, Importance weighted autoencoders, 2016.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from flowdiff.data.encoded import encodes, is_autoencoder
from flowdiff.data.readers import dequantised, split_batches
from flowdiff.evaluation import ranks
from flowdiff.evaluation.densities.likelihood import Likelihood, mean_and_error, per_dimension
from flowdiff.models.autoencoder.posterior import standard_normal
from flowdiff.models.conditioning import Conditioning
from flowdiff.noise import generators, randn

ACTIVE = 0.01  # variance of a unit's mean over the data

CondOf = Callable[[Tensor], Conditioning | None]


def autoencoder_of(denoiser: nn.Module) -> nn.Module | None:
    """What encodes and decodes here: the model itself, its first stage, or nothing."""
    if is_autoencoder(denoiser):
        return denoiser.network.autoencoder
    return denoiser.first_stage if encodes(denoiser) else None


@torch.no_grad()
def reconstruct(autoencoder: nn.Module, x: Tensor, batch_size: int) -> Tensor:
    """E[x|m(x)] of images (N, *shape), on x's device."""
    place = device_of(autoencoder)
    return torch.cat([autoencoder.reconstruct(part.to(place)).to(x.device) for part in x.split(batch_size)])


@torch.no_grad()
def latent_statistics(autoencoder: nn.Module, data: Any, batch_size: int) -> tuple[dict[str, float], Tensor]:
    """reconstruction_mse, kl and active_units of the test split, latent_dims beside the last; its reconstructions."""
    place = device_of(autoencoder)
    means, kls, errors, seen = [], [], [], []
    for x, _ in split_batches(data, data.test, batch_size):
        posterior = autoencoder.posterior(x.to(place))
        means.append(posterior.mean.flatten(1).double().cpu())
        kls.append(posterior.kl().flatten(1).sum(1).double().cpu())
        seen.append(reconstruct(autoencoder, x, batch_size))
        errors.append((x - seen[-1]).double().square().flatten(1).mean(1))
    mean = torch.cat(means)
    found = {
        "reconstruction_mse": torch.cat(errors).mean().item(),
        "kl": torch.cat(kls).mean().item(),
        "active_units": int((mean.var(0) > ACTIVE).sum()),
        "latent_dims": mean.shape[1],
    }
    return found, torch.cat(seen)


@torch.no_grad()
def image_bound(
    denoiser: nn.Module, data: Any, sigma: float, cond_of: CondOf, *, seed: int, batch_size: int
) -> Likelihood:
    """The bound on the images, one ε each: an autoencoder's with the prior N(0, I), or with p_σ of its latents.

    Sample i is dequantised and encoded by (seed, i) alone. Raises NotADensity as `denoiser.log_prob` does.
    """
    values = []
    for indices in ranks.mine(torch.arange(len(data.test))).split(batch_size):
        batch = data.test[indices]
        sources = generators(seed, indices.tolist())
        x = dequantised(data, batch.x, sources)
        values.append(bound(denoiser, x, batch.label, sigma, cond_of, sources).double().cpu())
    found = ranks.gathered(torch.cat(values), len(data.test))
    metric, per_dim = per_dimension(found, math.prod(data.shape), data.levels)
    return Likelihood(f"{metric}_bound", *mean_and_error(per_dim), len(per_dim))


def bound(
    denoiser: nn.Module, x: Tensor, label: Tensor, sigma: float, cond_of: CondOf, sources: list[torch.Generator]
) -> Tensor:
    """log p(ℓ) + log p(x|ℓ) − log q(ℓ|x) at ℓ ~ q(ℓ|x), nats (B,)."""
    autoencoder = autoencoder_of(denoiser)
    place = device_of(autoencoder)
    x = x.to(place)
    noise = randn((len(x), *autoencoder.latent_shape), sources, device=place)
    if is_autoencoder(denoiser):
        posterior = autoencoder.posterior(x)
        latent = posterior.sample(noise)
        log_likelihood = autoencoder.law.log_prob(x, autoencoder.decoded(latent))
        return log_likelihood + standard_normal(latent) - posterior.log_prob(latent)
    drawn = autoencoder.drawn(x, noise)
    return drawn.bound(denoiser.log_prob(drawn.z, x.new_full((len(x),), sigma), cond_of(label.to(place))))


def device_of(autoencoder: nn.Module) -> torch.device:
    """Where it computes."""
    return next(chain(autoencoder.parameters(), autoencoder.buffers())).device  # a frozen one shows no parameters
