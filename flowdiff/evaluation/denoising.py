"""The denoising loss on the test split, the same for every model, whatever its training loss was.

    E_{x0, σ, noise} [ (σ² + σd²) / (σ σd)² · ‖D(x0 + σ·noise, σ, c) − x0‖² / dim ],     ln σ ~ N(−1.2, 1.2²)

which is EDM's training loss: a model whose D is always the best multiple of x scores 1 on white data. An autoencoder
does not denoise: its test loss is the negative evidence lower bound, in nats per dimension.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowdiff.data.base import DataModule
from flowdiff.data.encoded import in_model_space
from flowdiff.diffusion.losses.contrastive import contrastive
from flowdiff.diffusion.losses.elbo import latent_noise
from flowdiff.diffusion.model import ConditionedDenoiser
from flowdiff.evaluation.densities.likelihood import mean_and_error
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.networks.base import AutoencoderNetwork, ImageTextNetwork
from flowdiff.noise import generators, randn_like
from flowdiff.shapes import append_dims, mean_except_batch

# Mean and standard deviation of ln σ. They are not settings, because values are only comparable if they are the same.
LOG_SIGMA_MEAN, LOG_SIGMA_STD = -1.2, 1.2


def denoising_loss(
    denoiser: ConditionedDenoiser, data: DataModule, *, seed: int, batch_size: int, num_levels: int
) -> tuple[float, float]:
    """Mean of `loss_of_test` over all (dequantised) test samples, and its standard error.

    Each sample is noised `num_levels` times, once in each of `num_levels` equally likely strata of the distribution of
    σ; the samples are spread evenly within a stratum, too. Noise and σ of sample i depend on (seed, i) and the size of
    the split only, so two models see the same noise at any batch size.

    Source: Karras, Aittala, Aila and Laine, "Elucidating the Design Space of Diffusion-Based Generative Models", 2022.
    """
    device = denoiser.sigma_data.device
    seen = in_model_space(denoiser, data)
    sigmas = stratified_sigmas(len(seen.test), num_levels, seed)  # (N, num_levels)
    losses = []
    for indices in torch.arange(len(seen.test)).split(batch_size):
        batch = seen.test[indices]
        sources = generators(seed, indices.tolist())
        x0 = seen.dequantize(batch.x, sources)
        cond = denoiser.cond_of_batch(batch)
        total = torch.zeros(len(indices), dtype=torch.float64)
        for level in range(num_levels):
            # Drawn on the CPU, so that it is the same on every device.
            noise = randn_like(x0, sources).to(device)
            sigma = sigmas[indices, level].to(device)
            clean = x0.to(device)
            with torch.no_grad():
                total += loss_of_test(denoiser, clean, sigma, noise, cond).double().cpu()
        losses.append(total / num_levels)
    return mean_and_error(torch.cat(losses))


def loss_of_test(
    denoiser: ConditionedDenoiser, x0: Tensor, sigma: Tensor, noise: Tensor, cond: Conditioning | None
) -> Tensor:
    """The test loss of each sample of a batch: x0, noise (B, …), sigma (B,) → (B,)."""
    if isinstance(denoiser.network, AutoencoderNetwork):
        autoencoder = denoiser.network.autoencoder
        return -autoencoder.elbo(x0, latent_noise(noise, autoencoder.latent_shape)).bound / x0[0].numel()
    if isinstance(denoiser.network, ImageTextNetwork):
        assert cond is not None  # the network takes conditioner=word_ids only
        return contrastive(denoiser.network, x0, cond).loss
    return edm_loss(denoiser, x0, sigma, noise, cond)


def edm_loss(
    denoiser: ConditionedDenoiser, x0: Tensor, sigma: Tensor, noise: Tensor, cond: Conditioning | None
) -> Tensor:
    """The loss in the equation above for each sample of a batch: x0, noise (B, …), sigma (B,) → (B,)."""
    error = denoiser(x0 + append_dims(sigma, x0.ndim) * noise, sigma, cond) - x0
    weight = (sigma**2 + denoiser.sigma_data**2) / (sigma * denoiser.sigma_data) ** 2
    return weight * mean_except_batch(error**2)


def stratified_sigmas(n: int, num_levels: int, seed: int) -> Tensor:
    """σ (n, num_levels): column j holds the midpoints of n equally likely bins of stratum j, in random order."""
    generator = torch.Generator().manual_seed(seed)
    columns = []
    for level in range(num_levels):
        u = (level + (torch.randperm(n, generator=generator).double() + 0.5) / n) / num_levels  # in (0, 1)
        normal = math.sqrt(2) * torch.erfinv(2 * u - 1)
        columns.append((LOG_SIGMA_MEAN + LOG_SIGMA_STD * normal).exp())
    return torch.stack(columns, 1).float()
