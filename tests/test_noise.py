"""Random numbers that belong to samples: independent of the batch, reproducible, standard normal."""

import math
from itertools import pairwise

import pytest
import torch

from flowdiff.noise import BrownianPath, generators, randn, randn_like, step_generator


def test_a_sample_is_the_same_in_every_batch():
    whole = randn((6, 3, 2), generators(7, range(6)))
    parts = torch.cat([randn((2, 3, 2), generators(7, range(i, i + 2))) for i in (0, 2, 4)])
    assert torch.equal(whole, parts)


@pytest.mark.parametrize("shape", [(), (3,), (15,), (16,), (3, 5, 7), (2, 8, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_numbers_of_a_seed_are_those_of_torch(shape, dtype):
    """Samples of a seed stay what they were: each is what torch.randn draws with its generator, draw after draw."""
    ours, theirs = generators(7, range(4)), generators(7, range(4))
    for _ in range(2):
        expected = torch.stack([torch.randn(shape, generator=g, dtype=dtype) for g in theirs])
        assert torch.equal(randn((4, *shape), ours, dtype=dtype), expected)
    assert randn((0, 3), []).shape == (0, 3)


def test_seeds_and_indices_differ():
    draws = torch.stack([randn((1, 50), generators(s, [i]))[0] for s in range(5) for i in range(5)])
    correlation = torch.corrcoef(draws) - torch.eye(25)
    assert correlation.abs().max() < 0.6  # 300 pairs of 50 numbers: 4 standard deviations of 0.14


def test_step_generators_depend_on_every_counter():
    draws = {step_generator(0, *c).initial_seed() for c in [(0,), (1,), (0, 0), (0, 1), (1, 0), (-1, 0)]}
    assert len(draws) == 6
    assert step_generator(3, 5, 1).initial_seed() == step_generator(3, 5, 1).initial_seed()


def test_moments():
    x = randn((2000, 5), generators(0, range(2000)))
    assert x.mean().abs() < 0.04  # 10,000 numbers: standard error 0.01
    assert (x.std() - 1).abs() < 0.03


def test_a_wrong_number_of_generators_is_refused():
    with pytest.raises(ValueError, match="2 generators were given for a batch of 3"):
        randn((3, 1), generators(0, range(2)))


def test_randn_like_keeps_the_dtype():
    x = torch.zeros(2, 3, dtype=torch.float64)
    assert randn_like(x, generators(0, range(2))).dtype == torch.float64
    assert randn_like(x, torch.Generator().manual_seed(0)).shape == x.shape


def brownian(n=1, seed=0):
    return BrownianPath(torch.zeros(n, 3, dtype=torch.float64), torch.Generator().manual_seed(seed))


# within an octave, close to its ends, over many octaves, a relative length of 4e-3
SPANS = [(1.1, 1.9), (1.0, 2.0), (0.5, 1.0001), (0.003, 700.0), (1e-9, 1e9), (5.0, 5.02)]


@pytest.mark.parametrize(("start", "end"), SPANS)
def test_increments_are_normal_with_the_variance_of_their_length(start, end):
    n = 20_000
    w = brownian(n).increment(start, end) / math.sqrt(end - start)
    assert w.mean().abs() < 4 / math.sqrt(3 * n)  # 4 standard errors, here and below
    # rounding t changes each end by up to 8e-6·t, which is 0.004 of the shortest span
    assert w.var().item() == pytest.approx(1, abs=4 * math.sqrt(2 / (3 * n)) + 0.004)
    assert (w**4).mean().item() == pytest.approx(3, abs=4 * math.sqrt(96 / (3 * n)) + 0.02)
    across = torch.corrcoef(w.T) - torch.eye(3)
    assert across.abs().max() < 4 / math.sqrt(n)


@pytest.mark.parametrize(("start", "end"), SPANS)
def test_increments_add_up(start, end):
    path, other = brownian(4), brownian(4)
    whole = path.increment(start, end)
    between = [start * (end / start) ** (i / 7) for i in range(8)]
    parts = [other.increment(a, b) for a, b in pairwise(between)]
    torch.testing.assert_close(sum(parts), whole, rtol=0, atol=1e-12 * math.sqrt(end))
    assert path.increment(start, start).abs().max() == 0
    assert torch.equal(path.increment(start, end), whole)


def test_successive_increments_are_independent():
    n = 20_000
    path = brownian(n)
    ends = [0.4, 0.9, 1.3, 1.31, 4.0, 90.0]
    parts = torch.stack([path.increment(a, b).flatten() for a, b in pairwise(ends)])
    assert (torch.corrcoef(parts) - torch.eye(5)).abs().max() < 4 / math.sqrt(3 * n)


def test_a_path_belongs_to_its_sample():
    x = torch.zeros(5, 2, 3)
    whole = BrownianPath(x, generators(7, range(5))).increment(0.3, 8.0)
    assert whole.shape == x.shape
    assert whole.dtype == x.dtype
    parts = [BrownianPath(x[:1], generators(7, [i])).increment(0.3, 8.0) for i in range(5)]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.corrcoef(whole.flatten(1)).abs().fill_diagonal_(0).max() < 0.999


def test_a_path_draws_its_key_at_the_first_increment():
    source = torch.Generator().manual_seed(0)
    state = source.get_state()
    path = BrownianPath(torch.zeros(2, 3), source)
    assert torch.equal(source.get_state(), state)
    first = path.increment(1.0, 2.0)
    assert not torch.equal(source.get_state(), state)
    assert torch.equal(path.increment(1.0, 2.0), first)
    assert not torch.equal(BrownianPath(torch.zeros(2, 3), source).increment(1.0, 2.0), first)
