"""Simulation-based calibration: whether a method draws from the posterior that it claims.

A truth x0 ~ p(x0) is measured, y ~ p(y|x0), and K draws of p(x|y) are made. Given y, truth and draws then have the same
distribution, so that the rank of a function q of the truth among those of the draws,

    rank = #{k: q(x_k, y) < q(x0, y)} ∈ {0 … K},

is uniform, for every q. It is tested by χ² on the histogram of the ranks of many truths. Draws that are too narrow make
the histogram a valley, too wide a hill, and a bias slopes it. The functions are the numbers of a sample, their sum,
their sum of squares and the misfit ‖y − A·x‖², which sees errors of the whole sample.

Sources: Talts, Betancourt, Simpson, Vehtari, Gelman, Validating Bayesian inference algorithms with simulation-based
calibration, 2018; Modrák et al., Simulation-based calibration checking for Bayesian computation: the choice of test
quantities shapes sensitivity, 2023, for the misfit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowdiff.diffusion.measurements import Measurement
from flowdiff.diffusion.model import ConditionedDenoiser
from flowdiff.diffusion.posteriors import Drawing, Posterior
from flowdiff.errors import ConfigurationError
from flowdiff.evaluation.restoration.restore import Restoration, restore
from flowdiff.shapes import sum_except_batch

EXPECTED = 5  # truths in a bin of the histogram, at least, so that χ² has its distribution


@dataclass(frozen=True)
class Calibration:
    """The ranks of N truths, by each of Q functions, and the restoration that they come from.

    Args:
        ranks: (N, Q) int64 in 0 … K.
        draws: K.
        found: the truths and their draws.
    """

    ranks: Tensor
    draws: int
    found: Restoration

    def histogram(self, bins: int) -> Tensor:
        """How many ranks of each function fall into each of `bins` equal parts of 0 … K, (Q, bins) int64.

        Raises:
            ConfigurationError: bins does not divide K + 1.
        """
        if (self.draws + 1) % bins:
            raise ConfigurationError(
                f"bins={bins} does not divide the {self.draws + 1} ranks of {self.draws} draws into equal parts: "
                f"choose a divisor of {self.draws + 1}."
            )
        place = self.ranks // ((self.draws + 1) // bins)
        return torch.stack([torch.bincount(column, minlength=bins) for column in place.T])

    def p_values(self, bins: int) -> Tensor:
        """The probability of a histogram at least as uneven as that of each function, if ranks are uniform, (Q,)."""
        expected = len(self.ranks) / bins
        if expected < EXPECTED:
            raise ConfigurationError(
                f"{len(self.ranks)} truths are too few for bins={bins}: take {EXPECTED * bins} truths or more, or "
                "fewer bins."
            )
        square = ((self.histogram(bins).double() - expected) ** 2 / expected).sum(1)
        half = torch.tensor((bins - 1) / 2, dtype=torch.float64)
        return torch.special.gammaincc(half, square / 2)

    def p_value(self, bins: int) -> float:
        """The probability that the most uneven of the Q histograms is so uneven, at most (Bonferroni): Q·min p, ≤ 1."""
        p = self.p_values(bins)
        return min(1.0, float(p.min()) * len(p))


def calibrate(
    model: ConditionedDenoiser, measurement: Measurement, posterior: Posterior, truth: Tensor, drawing: Drawing
) -> Calibration:
    """Ranks of truths among draws of a method.

    Args:
        model: the prior.
        measurement: A and σ_y.
        posterior: the method.
        truth: exact samples of the prior, (N, *shape).
        drawing: how many draws, and how.
    """
    found = restore(model, measurement, posterior, truth, drawing)
    n, count = found.draws.x.shape[:2]
    y = found.y.repeat_interleave(count, 0)
    of_draws = _functions(measurement, found.draws.x.flatten(0, 1), y).view(n, count, -1)
    of_truth = _functions(measurement, found.truth, found.y)
    return Calibration((of_draws < of_truth[:, None]).sum(1), count, found)


def _functions(measurement: Measurement, x: Tensor, y: Tensor) -> Tensor:
    """The functions of samples x (B, …) and their measurements y (B, …), (B, Q) float64."""
    flat = x.double().flatten(1)
    misfit = sum_except_batch((y - measurement(x)).double() ** 2)
    return torch.cat([flat, flat.sum(1, keepdim=True), (flat**2).sum(1, keepdim=True), misfit[:, None]], 1)
