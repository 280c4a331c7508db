"""Conditions of batches: joined whatever the lengths of their sequences, and taken apart again."""

from __future__ import annotations

import pytest
import torch

from flowdiff.models.conditioning import Conditioning


def words(n: int, length: int, seed: int = 0) -> Conditioning:
    """n sequences, of which sample i's first i + 1 tokens count, beside a vector."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(length) <= torch.arange(n)[:, None]
    return Conditioning(torch.randn(n, 2, generator=generator), torch.randn(n, length, 3, generator=generator), mask)


def test_what_is_joined_comes_apart_again():
    a, b = words(2, 4), words(3, 4, seed=1)
    both = Conditioning.cat([a, b])
    for part, rows in ((a, torch.tensor([0, 1])), (b, torch.tensor([False, False, True, True, True]))):
        for name, given in vars(part).items():
            assert torch.equal(getattr(both[rows], name), given)
    vector = Conditioning.cat([Conditioning(a.vector), Conditioning(b.vector)])[torch.tensor([4, 4])]
    assert torch.equal(vector.vector, b.vector[[2, 2]])
    assert vector.tokens is None
    unmasked = Conditioning.cat([Conditioning(None, a.tokens), Conditioning(None, b.tokens)])
    assert torch.equal(unmasked.tokens, both.tokens)
    assert unmasked.mask is None
    assert bool(unmasked.counts().all())


def test_shorter_sequences_end_in_tokens_that_do_not_count():
    long, short, none = words(2, 4), Conditioning(torch.ones(1, 2), torch.ones(1, 2, 3)), words(1, 0)
    both = Conditioning.cat([long, short, none])
    assert both.tokens.shape == (4, 4, 3)
    assert both.mask.tolist() == [
        [True, False, False, False],
        [True, True, False, False],
        [True, True, False, False],
        [False, False, False, False],
    ]
    assert torch.equal(both.tokens[2, :2], short.tokens[0])


def test_only_what_counts_is_in_the_row_of_a_sample():
    cond = words(2, 4)
    hidden = Conditioning(cond.vector, torch.where(cond.mask[..., None], cond.tokens, torch.nan), cond.mask)
    row = torch.cat([cond.vector[1], cond.tokens[1, :2].flatten(), torch.zeros(6)])
    assert torch.equal(hidden.flat()[1], row)
    assert torch.equal(Conditioning(cond.vector).flat(), cond.vector)
    assert torch.equal(Conditioning(None, cond.tokens).flat(), cond.tokens.flatten(1))


def test_conditions_of_two_kinds_are_not_joined():
    cond = words(2, 4)
    for other in (Conditioning(cond.vector), Conditioning(None, cond.tokens)):
        with pytest.raises(ValueError, match="cannot be joined"):
            Conditioning.cat([cond, other])
