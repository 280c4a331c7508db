"""Samples of a one-dimensional Gaussian, on which many samplers are linear, so that their moments are known."""

import math

import pytest
import torch

from flowdiff.testing import oracles

TAU2 = 0.25  # variance of the clean data


def samples_of_gaussian(sampler, sigmas, mean: float = 0.0, n: int = 40_000):
    """n samples (n, 1) of N(mean, TAU2) by the sampler, started at N(0, 10²)."""
    generator = torch.Generator().manual_seed(0)
    x = 10 * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    return sampler(oracles.Gaussian(torch.tensor([mean]), torch.tensor([[TAU2]])), x, sigmas, generator=generator)


def has_variance(x, variance: float) -> None:
    """Within 4 standard errors of a normal sample's variance."""
    assert x.var().item() == pytest.approx(variance, rel=4 * math.sqrt(2 / len(x)))
