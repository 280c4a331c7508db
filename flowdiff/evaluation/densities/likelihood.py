"""Exact likelihood of the test split, under uniform dequantisation.

A pixel of level k ∈ {0, …, levels − 1} becomes x = 2 (k + u) / levels − 1 with u ~ U[0, 1), so that a density p of x
bounds the probability of k:  −log₂ P(k) ≤ E_u[−log₂ p(x)] + log₂(levels / 2) per dimension. Hence

    bits/dim = −log p_σ(x) / (D ln 2) + log₂(levels / 2)        nats/dim = −log p_σ(x) / D   (continuous data)
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from flowdiff.data.base import Dataset
from flowdiff.diffusion.model import ConditionedDenoiser
from flowdiff.evaluation import ranks
from flowdiff.noise import generators
from flowdiff.runs.undefined import ONE_SAMPLE, Undefined


class Likelihood(NamedTuple):
    """Mean negative log-likelihood over n test samples and its standard error, in the unit that `metric` names."""

    metric: str  # "bpd" (bits per dimension) or "nats_per_dim"
    mean: float
    standard_error: float
    n: int


def bits_per_dim(
    denoiser: ConditionedDenoiser, data: Dataset, sigma: float, *, seed: int, batch_size: int
) -> Likelihood:
    """Negative log-likelihood of every test sample under the model's own density p_σ, the "exact density".

    Images are dequantised uniformly and evaluated under p_σ without added noise of size σ: bits per dimension. Data
    without levels: nats per dimension. The dequantisation of sample i depends on (seed, i) only, not on batch_size.

    Raises:
        NotADensity: the network is not a density.

    Source: Theis, van den Oord and Bethge, "A note on the evaluation of generative models", 2016.
    """
    device = denoiser.sigma_data.device
    batches = []
    for indices in ranks.mine(torch.arange(len(data.test))).split(batch_size):
        batch = data.test[indices]
        x = data.dequantize(batch.x, generators(seed, indices.tolist())).to(device)
        with torch.no_grad():
            log_prob = denoiser.log_prob(x, x.new_full((len(x),), sigma), denoiser.cond_of_batch(batch))
        batches.append(log_prob.double().cpu())
    log_probs = ranks.gather(torch.cat(batches), len(data.test))
    metric, values = per_dimension(log_probs, math.prod(data.shape), data.levels)
    return Likelihood(metric, *mean_and_error(values), len(values))


def per_dimension(log_prob: Tensor, dimensions: int, levels: int | None) -> tuple[str, Tensor]:
    """Name and value of −log p per dimension for log_prob (N,) in nats: bits if the data have levels, else nats."""
    nats = -log_prob.double().cpu() / dimensions
    if levels is None:
        return "nats_per_dim", nats
    return "bpd", nats / math.log(2) + math.log2(levels / 2)


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Mean of independent values (N,) and its standard error s/√N, which is Undefined for a single value."""
    mean = values.mean().item()
    return mean, Undefined(ONE_SAMPLE) if len(values) < 2 else (values.std() / math.sqrt(len(values))).item()
