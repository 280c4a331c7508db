"""What only a normalised conditional density can do: exact class posteriors, by Bayes' rule with a uniform prior.

p(c | x, σ) = p_σ(x | c) / Σ_c′ p_σ(x | c′)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flowdiff.conditioning import Conditioning
from flowdiff.evaluation.likelihood import dequantised, mean_and_error
from flowdiff.noise import generators, randn_like

CALIBRATION_BINS = 15


class Classification(NamedTuple):
    """Test accuracy with its standard error, and how far confidence is from accuracy, all in [0, 1]."""

    accuracy: float
    standard_error: float
    calibration_error: float


def log_posterior(
    denoiser: nn.Module,
    x: Tensor,
    sigma: Tensor,
    cond_of: Callable[[Tensor], Conditioning | None],
    num_classes: int,
) -> Tensor:
    """log p(c | x, σ) of every class: x (B, …), sigma (B,) → (B, num_classes) nats, each row summing to 1 in p.

    cond_of maps labels (B,) to a Conditioning. num_classes evaluations of the density. Raises NotADensity as
    `denoiser.log_prob` does.
    """
    labels = torch.arange(num_classes, device=x.device)
    columns = [denoiser.log_prob(x, sigma, cond_of(label.expand(len(x)))) for label in labels]
    return torch.stack(columns, 1).log_softmax(1)


def classify(
    denoiser: nn.Module,
    data: Any,
    sigma: float,
    cond_of: Callable[[Tensor], Conditioning | None],
    *,
    seed: int,
    batch_size: int,
) -> Classification:
    """Classify every test sample, dequantised and noised to σ, by its exact posterior.

    Noise of sample i follows from (seed, i). The calibration error is the mean distance between confidence and accuracy
    over 15 bins of confidence. Raises NotADensity as `denoiser.log_prob` does.

    Source: Guo, Pleiss, Sun & Weinberger, On calibration of modern neural networks, 2017.
    """
    device = denoiser.sigma_data.device
    posteriors, labels = [], []
    for indices in torch.arange(len(data.test)).split(batch_size):
        batch = data.test[indices]
        sources = generators(seed, indices.tolist())
        x0 = dequantised(data, batch.x, sources)
        x = (x0 + sigma * randn_like(x0, sources)).to(device)
        with torch.no_grad():
            found = log_posterior(denoiser, x, x.new_full((len(x),), sigma), cond_of, data.num_classes)
        posteriors.append(found.double().exp().cpu())
        labels.append(batch.label.cpu())
    from torchmetrics.functional.classification import multiclass_calibration_error  # takes seconds

    p, c = torch.cat(posteriors), torch.cat(labels)
    accuracy, error = mean_and_error((p.argmax(1) == c).double())
    calibration = multiclass_calibration_error(p, c, data.num_classes, n_bins=CALIBRATION_BINS)
    return Classification(accuracy, error, calibration.item())
