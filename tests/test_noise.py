"""Random numbers belong to samples: independent of the batch, reproducible, standard normal."""

import pytest
import torch

from flowdiff.noise import generators, randn, randn_like, step_generator


def test_a_sample_is_the_same_in_every_batch():
    whole = randn((6, 3, 2), generators(7, range(6)))
    parts = torch.cat([randn((2, 3, 2), generators(7, range(i, i + 2))) for i in (0, 2, 4)])
    assert torch.equal(whole, parts)


def test_seeds_and_indices_differ():
    draws = torch.stack([randn((1, 50), generators(s, [i]))[0] for s in range(5) for i in range(5)])
    correlation = torch.corrcoef(draws) - torch.eye(25)
    assert correlation.abs().max() < 0.6  # 300 pairs of 50 numbers: sd 0.14, four sigma


def test_step_generators_depend_on_every_counter():
    draws = {step_generator(0, *c).initial_seed() for c in [(0,), (1,), (0, 0), (0, 1), (1, 0), (-1, 0)]}
    assert len(draws) == 6
    assert step_generator(3, 5, 1).initial_seed() == step_generator(3, 5, 1).initial_seed()


def test_moments():
    x = randn((2000, 5), generators(0, range(2000)))
    assert x.mean().abs() < 0.04  # 10,000 numbers: standard error 0.01
    assert (x.std() - 1).abs() < 0.03


def test_as_many_generators_as_samples():
    with pytest.raises(ValueError, match="2 generators were given for a batch of 3"):
        randn((3, 1), generators(0, range(2)))


def test_randn_like_keeps_the_dtype():
    x = torch.zeros(2, 3, dtype=torch.float64)
    assert randn_like(x, generators(0, range(2))).dtype == torch.float64
    assert randn_like(x, torch.Generator().manual_seed(0)).shape == x.shape
