"""Exact class posteriors of a normalised conditional density, by Bayes' rule with a uniform prior.

    log p_σ(x, c) = log p_σ(x | c) − log C,    log p_σ(x) = log Σ_c p_σ(x, c),    p(c | x, σ) = p_σ(x, c) / p_σ(x)

The calibration error is the mean distance between confidence and accuracy over equal bins of confidence:

    ECE = Σ_bins |Σ_{i in bin} (correctᵢ − confidenceᵢ)| / N
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from flowdiff.data.base import Dataset
from flowdiff.data.readers import evenly
from flowdiff.diffusion.model import ConditionedDenoiser
from flowdiff.evaluation import ranks
from flowdiff.evaluation.densities.likelihood import mean_and_error
from flowdiff.noise import generators, randn_like

CALIBRATION_BINS = 15


class Classification(NamedTuple):
    """Test accuracy, its standard error and the calibration error, all in [0, 1], over n test samples."""

    accuracy: float
    standard_error: float
    calibration_error: float
    n: int


def log_joint(denoiser: ConditionedDenoiser, x: Tensor, sigma: Tensor) -> Tensor:
    """log p_σ(x, c) of each of the C classes of a class-conditional density: x (B, …), sigma (B,) → (B, C) nats.

    It evaluates the density C times.

    Raises:
        NotADensity: the network is not a density.
    """
    assert denoiser.num_classes is not None  # the callers check that the model is conditional
    labels = torch.arange(denoiser.num_classes, device=x.device)
    columns = [denoiser.log_prob(x, sigma, denoiser.cond_of(label.expand(len(x)))) for label in labels]
    return torch.stack(columns, 1) - math.log(denoiser.num_classes)


def classify(
    denoiser: ConditionedDenoiser, data: Dataset, sigma: float, *, seed: int, batch_size: int, most: int | None = None
) -> Classification:
    """Classify test samples, dequantised and noised to σ, by a density's exact posterior or by a classifier.

    Args:
        denoiser: a class-conditional density, or a classifier.
        data: the data set.
        sigma: noise level.
        seed: the noise of sample i depends on (seed, i) only.
        batch_size: samples per batch.
        most: number of evenly spaced test samples; None for all.

    Raises:
        NotADensity: the network is neither a density nor a classifier.

    Source: Guo, Pleiss, Sun & Weinberger, On calibration of modern neural networks, 2017.
    """
    device = denoiser.sigma_data.device
    posteriors, labels = [], []
    positions = evenly(len(data.test), most)
    for indices in ranks.mine(positions).split(batch_size):
        batch = data.test[indices]
        sources = generators(seed, indices.tolist())
        x0 = data.dequantize(batch.x, sources)
        x = (x0 + sigma * randn_like(x0, sources)).to(device)
        with torch.no_grad():
            levels = x.new_full((len(x),), sigma)
            if denoiser.is_classifier:
                scores = denoiser.class_log_prob(x, levels)  # log p_σ(x, c) up to log p_σ(x), equal for all classes
            else:
                scores = log_joint(denoiser, x, levels)
        posteriors.append(scores.double().softmax(1).cpu())
        labels.append(batch.label.cpu())
    p, c = (ranks.gather(torch.cat(parts), len(positions)) for parts in (posteriors, labels))
    confidence, predicted = p.max(1)
    correct = (predicted == c).double()
    return Classification(*mean_and_error(correct), calibration_error(confidence, correct), len(c))


def calibration_error(confidence: Tensor, correct: Tensor) -> float:
    """ECE ∈ [0, 1] of predictions, NaN if a confidence is not finite.

    confidence (N,) ∈ (0, 1] is their probability, correct (N,) is 1 where they are true and 0 elsewhere.
    """
    if not bool(confidence.isfinite().all()):
        return math.nan
    bins = (confidence * CALIBRATION_BINS).ceil().long().clamp(1, CALIBRATION_BINS) - 1
    excess = confidence.new_zeros(CALIBRATION_BINS).index_add_(0, bins, correct - confidence)
    return (excess.abs().sum() / len(confidence)).item()
