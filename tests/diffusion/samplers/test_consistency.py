"""Multistep consistency sampling: with the exact function the moments of a Gaussian are right after any few steps."""

import pytest
import torch

from flowdiff import registry
from flowdiff.testing import oracles

GAUSSIAN = oracles.Gaussian(torch.tensor([0.3, -0.2]), torch.tensor([[0.3, 0.1], [0.1, 0.1]]))


@pytest.mark.parametrize("levels", [[], [0.8], [5.0, 0.8, 0.1]])
def test_any_number_of_steps_leaves_the_moments_of_a_gaussian(levels):
    sampler = registry.create("sampler", "consistency", num_steps=1 + len(levels))
    n, top = 20_000, 80.0
    generator = torch.Generator().manual_seed(0)
    x = GAUSSIAN.sample(torch.full((n,), top, dtype=torch.float64), generator=generator)
    x0 = sampler(GAUSSIAN.end_of_trajectory, x, [top, *levels, 0.0], generator=generator)
    spread = GAUSSIAN.covariance.diagonal().sqrt()
    # 5 standard errors; σ_min² = 4e-6 of variance is far below them
    assert ((x0.mean(0) - GAUSSIAN.mean).abs() < 5 * spread / n**0.5).all()
    assert ((x0.T.cov() - GAUSSIAN.covariance).abs() < 5 * (2 / n) ** 0.5 * torch.outer(spread, spread)).all()
