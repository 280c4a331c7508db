"""What only a normalised conditional density can do: exact class posteriors, by Bayes' rule with a uniform prior.

    log p_σ(x, c) = log p_σ(x | c) − log C,    log p_σ(x) = log Σ_c p_σ(x, c),    p(c | x, σ) = p_σ(x, c) / p_σ(x)

The calibration error is the mean distance between confidence and accuracy over equal bins of confidence:

    ECE = Σ_bins |Σ_{i in bin} (correctᵢ − confidenceᵢ)| / N
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flowdiff.data.readers import dequantised, evenly
from flowdiff.evaluation import ranks
from flowdiff.evaluation.densities.likelihood import mean_and_error
from flowdiff.models.conditioning import Conditioning
from flowdiff.noise import generators, randn_like

CALIBRATION_BINS = 15


class Classification(NamedTuple):
    """Test accuracy with its standard error, how far confidence is from accuracy, all in [0, 1]; samples classified."""

    accuracy: float
    standard_error: float
    calibration_error: float
    n: int


def log_joint(
    denoiser: nn.Module,
    x: Tensor,
    sigma: Tensor,
    cond_of: Callable[[Tensor], Conditioning | None],
    num_classes: int,
) -> Tensor:
    """log p_σ(x, c) of every class: x (B, …), sigma (B,) → (B, num_classes) nats.

    cond_of maps labels (B,) to a Conditioning. num_classes evaluations of the density. Raises NotADensity as
    `denoiser.log_prob` does.
    """
    labels = torch.arange(num_classes, device=x.device)
    columns = [denoiser.log_prob(x, sigma, cond_of(label.expand(len(x)))) for label in labels]
    return torch.stack(columns, 1) - math.log(num_classes)


def classify(
    denoiser: nn.Module,
    data: Any,
    sigma: float,
    cond_of: Callable[[Tensor], Conditioning | None],
    *,
    seed: int,
    batch_size: int,
    most: int | None = None,
) -> Classification:
    """Classify test samples, dequantised and noised to σ, by the exact posterior of a density, or by a classifier.

    most: how many of them, evenly spaced; None for all. Noise of sample i follows from (seed, i). Raises NotADensity
    as `denoiser.log_prob` does.

    Source: Guo, Pleiss, Sun & Weinberger, On calibration of modern neural networks, 2017.
    """
    device = denoiser.sigma_data.device
    posteriors, labels = [], []
    positions = evenly(len(data.test), most)
    for indices in ranks.mine(positions).split(batch_size):
        batch = data.test[indices]
        sources = generators(seed, indices.tolist())
        x0 = dequantised(data, batch.x, sources)
        x = (x0 + sigma * randn_like(x0, sources)).to(device)
        with torch.no_grad():
            levels = x.new_full((len(x),), sigma)
            if is_classifier(denoiser):
                joint = denoiser.network.class_log_prob(x, levels)  # up to log p_σ(x), which no class changes
            else:
                joint = log_joint(denoiser, x, levels, cond_of, data.num_classes)
        posteriors.append(joint.double().softmax(1).cpu())
        labels.append(batch.label.cpu())
    p, c = (ranks.gathered(torch.cat(parts), len(positions)) for parts in (posteriors, labels))
    confidence, predicted = p.max(1)
    correct = (predicted == c).double()
    return Classification(*mean_and_error(correct), calibration_error(confidence, correct), len(c))


def is_classifier(denoiser: nn.Module) -> bool:
    """Whether its network is one of p(c|x, σ) itself."""
    return hasattr(denoiser.network, "class_log_prob")


def calibration_error(confidence: Tensor, correct: Tensor) -> float:
    """ECE ∈ [0, 1] of predictions made with `confidence` ∈ (0, 1], (N,), of which `correct` ∈ {0, 1}, (N,), came true.

    Not-a-number if a confidence is.
    """
    if not bool(confidence.isfinite().all()):
        return math.nan
    bins = (confidence * CALIBRATION_BINS).ceil().long().clamp(1, CALIBRATION_BINS) - 1
    excess = confidence.new_zeros(CALIBRATION_BINS).index_add_(0, bins, correct - confidence)
    return (excess.abs().sum() / len(confidence)).item()
