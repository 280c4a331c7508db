"""What draws of a posterior are worth, given the truth that was measured.

x (N, K, …) are K draws of each of N measurements and t (N, …) the truths. Of a calibrated posterior the truth is one
more draw: among the K draws its rank is uniform on 0 … K, which makes the coverage of every interval that which it
claims.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

WINDOW = 7  # pixels of a side of the windows of SSIM


class Coverage(NamedTuple):
    """A central credible interval: the probability that it claims, and the share of numbers whose truth lies in it."""

    nominal: float
    found: float


def crps(x: Tensor, t: Tensor) -> Tensor:
    """The continuous ranked probability score of each measurement, a mean over its numbers, (N,): smaller is better.

    CRPS = E|X − t| − ½·E|X − X'|,  unbiased in the number K ≥ 2 of draws

    It has the unit of the data. A single certain answer has E|X − X'| = 0, and the score is its mean absolute error.

    Source: Gneiting & Raftery, Strictly proper scoring rules, prediction, and estimation, 2007; Ferro, Fair scores for
        ensemble forecasts, 2014.
    """
    count = x.shape[1]
    error = (x - t[:, None]).abs().mean(1)
    # Σ_{k<l} |x_k − x_l| of sorted draws is Σ_k (2k − K − 1)·x_(k)
    rank = torch.arange(1, count + 1, dtype=x.dtype, device=x.device)
    weights = (2 * rank - count - 1).view(1, -1, *[1] * (x.ndim - 2))
    spread = (weights * x.sort(1).values).sum(1) / (count * (count - 1))
    return (error - spread).flatten(1).mean(1)


def coverage(x: Tensor, t: Tensor, level: float) -> Coverage:
    """How often the truth lies in the central interval of the draws whose probability is nearest to `level`.

    The interval reaches from the a-th smallest to the a-th largest of K draws, and holds (K + 1 − 2a)/(K + 1).
    """
    count = x.shape[1]
    a = min(max(1, round((1 - level) / 2 * (count + 1))), (count + 1) // 2)
    ordered = x.sort(1).values
    inside = (ordered[:, a - 1] <= t) & (t <= ordered[:, count - a])
    return Coverage((count + 1 - 2 * a) / (count + 1), float(inside.float().mean()))


def psnr(x: Tensor, t: Tensor) -> float:
    """Peak signal-to-noise ratio of images x (N, C, H, W) in [−1, 1], dB, a mean over the images."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    return float(peak_signal_noise_ratio(x, t, data_range=2.0, reduction="elementwise_mean", dim=(1, 2, 3)))


def ssim(x: Tensor, t: Tensor) -> float | None:
    """Structural similarity of images x (N, C, H, W) in [−1, 1] by uniform windows; None where none fits into them."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    if min(x.shape[-2:]) < WINDOW:
        return None
    found = structural_similarity_index_measure(x, t, gaussian_kernel=False, kernel_size=WINDOW, data_range=2.0)
    assert isinstance(found, Tensor)  # no further images were asked for
    return float(found)
