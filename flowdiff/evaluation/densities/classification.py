"""Exact posteriors of a normalised conditional density, by Bayes' rule with a uniform prior over C candidates.

    log p_σ(x, c) = log p_σ(x | c) − log C,    log p_σ(x) = log Σ_c p_σ(x, c),    p(c | x, σ) = p_σ(x, c) / p_σ(x)

The candidates are the classes, or the captions of some test samples; to choose a caption is zero-shot classification.
The calibration error is the mean distance between confidence and accuracy over equal bins of confidence:

    ECE = Σ_bins |Σ_{i in bin} (correctᵢ − confidenceᵢ)| / N
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from flowdiff.data.base import Batch, Dataset
from flowdiff.data.readers import evenly
from flowdiff.diffusion.model import ConditionedDenoiser
from flowdiff.evaluation import ranks
from flowdiff.evaluation.densities.likelihood import mean_and_error
from flowdiff.evaluation.retrieval import CANDIDATES
from flowdiff.models.conditioners.base import Given, LabelledText
from flowdiff.noise import generators, randn_like

CALIBRATION_BINS = 15


class Classification(NamedTuple):
    """Test accuracy, its standard error and the calibration error, all in [0, 1], over n test samples."""

    accuracy: float
    standard_error: float
    calibration_error: float
    n: int


def log_joint(denoiser: ConditionedDenoiser, x: Tensor, sigma: Tensor, candidates: Given | None = None) -> Tensor:
    """log p_σ(x, c) of each of C candidates of a conditional density: x (B, …), sigma (B,) → (B, C) nats.

    The candidates are classes or captions; None for all classes. It evaluates the density C times.

    Raises:
        NotADensity: the network is not a density.
    """
    candidates = _classes(denoiser) if candidates is None else candidates
    cond = denoiser.cond_of(candidates)
    assert cond is not None  # the callers check that the model is conditional
    rows = torch.arange(len(candidates), device=x.device)
    columns = [denoiser.log_prob(x, sigma, cond[row.expand(len(x))]) for row in rows]
    return torch.stack(columns, 1) - math.log(len(candidates))


def classify(
    denoiser: ConditionedDenoiser, data: Dataset, sigma: float, *, seed: int, batch_size: int, most: int | None = None
) -> Classification:
    """Classify test samples, dequantised and noised to σ, by a density's exact posterior or by a classifier.

    A density of captions chooses among the captions of CANDIDATES test samples, each once. A rest of fewer samples is
    left out, because its choice would be easier.

    Args:
        denoiser: a density of classes or of captions, or a classifier.
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
    positions = evenly(len(data.test), most)
    size = min(CANDIDATES, len(positions)) if denoiser.conditioner.reads_text else len(positions)
    confidences, hits = [], []
    for part in positions[: len(positions) // size * size].split(size):
        candidates, own = _candidates(denoiser, data.test[part])
        posteriors = []
        for indices in ranks.mine(part).split(batch_size):
            sources = generators(seed, indices.tolist())
            x0 = data.dequantize(data.test[indices].x, sources)
            x = (x0 + sigma * randn_like(x0, sources)).to(device)
            with torch.no_grad():
                levels = x.new_full((len(x),), sigma)
                if denoiser.is_classifier:
                    scores = denoiser.class_log_prob(x, levels)  # log p_σ(x, c) up to log p_σ(x), equal for all classes
                else:
                    scores = log_joint(denoiser, x, levels, candidates)
            posteriors.append(scores.double().softmax(1).cpu())
        confidence, predicted = ranks.gather(torch.cat(posteriors), len(part)).max(1)
        confidences.append(confidence)
        hits.append((predicted == own).double())
    confidence, correct = torch.cat(confidences), torch.cat(hits)
    return Classification(*mean_and_error(correct), calibration_error(confidence, correct), len(correct))


def _classes(denoiser: ConditionedDenoiser) -> Tensor:
    """All classes of a class-conditional model."""
    assert denoiser.num_classes is not None  # the callers check that the model is conditional
    return torch.arange(denoiser.num_classes)


def _candidates(denoiser: ConditionedDenoiser, batch: Batch) -> tuple[Given, Tensor]:
    """What the samples of a batch are classified as, and the position of each sample's own candidate, (B,)."""
    if not denoiser.conditioner.reads_text:
        return _classes(denoiser), batch.label.cpu()
    texts = denoiser.conditioner.given(batch)
    assert not isinstance(texts, Tensor | LabelledText)  # Densities.check refuses a model of classes and captions
    row = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    return list(row), torch.tensor([row[text] for text in texts])


def calibration_error(confidence: Tensor, correct: Tensor) -> float:
    """ECE ∈ [0, 1] of predictions, NaN if a confidence is not finite.

    confidence (N,) ∈ (0, 1] is their probability, correct (N,) is 1 where they are true and 0 elsewhere.
    """
    if not bool(confidence.isfinite().all()):
        return math.nan
    bins = (confidence * CALIBRATION_BINS).ceil().long().clamp(1, CALIBRATION_BINS) - 1
    excess = confidence.new_zeros(CALIBRATION_BINS).index_add_(0, bins, correct - confidence)
    return (excess.abs().sum() / len(confidence)).item()
