"""AUROC of a known density, and what permuting does."""

import math

import pytest
import torch
from oracles import Gaussian

from flowdiff.evaluation.outliers import auroc, permuted


def density():
    oracle = Gaussian(torch.zeros(2), torch.eye(2))
    oracle.sigma_data = torch.ones(())
    return oracle


def none(n):
    return None


def test_auroc_of_a_gaussian_against_a_wider_one():
    """‖x‖² is exponential, of mean 2 for own and 2w² for foreign: P(own < foreign) = w²/(1 + w²)."""
    generator = torch.Generator().manual_seed(0)
    own, foreign = torch.randn(4000, 2, generator=generator), 2 * torch.randn(4000, 2, generator=generator)
    found = auroc(density(), own, foreign, 0.5, none, batch_size=1000)
    assert found == pytest.approx(4 / 5, abs=4 * math.sqrt(0.8 * 0.2 / 4000))


def test_auroc_of_the_same_data_is_one_half():
    x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    assert auroc(density(), x, x, 0.5, none, batch_size=100) == pytest.approx(0.5)


def test_permuting_keeps_every_value_and_moves_all_samples_alike():
    x = torch.arange(2 * 1 * 4 * 4.0).view(2, 1, 4, 4)
    y = permuted(x)
    assert torch.equal(y[0].flatten().sort().values, x[0].flatten())
    assert torch.equal(y[1], y[0] + 16)
    assert not torch.equal(y, x)
