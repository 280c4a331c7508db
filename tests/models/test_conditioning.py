"""Conditions of batches are joined for any lengths of their sequences, and indexed by sample."""

import pytest
import torch

from flowdiff.models.conditioning import Conditioning


def words(n: int, length: int, seed: int = 0) -> Conditioning:
    """n samples, each with a vector, tokens, guidance, gate, label and hint; of sample i, i + 1 tokens count."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(length) <= torch.arange(n)[:, None]
    sizes = ((2,), (length, 3), (2,), (), (1, 2, 2))
    vector, tokens, guidance, gate, hint = (torch.randn(n, *size, generator=generator) for size in sizes)
    return Conditioning(vector, tokens, mask, guidance, gate, torch.arange(n), hint)


def test_indexing_undoes_joining():
    a, b = words(2, 4), words(3, 4, seed=1)
    both = Conditioning.cat([a, b])
    for part, rows in ((a, torch.tensor([0, 1])), (b, torch.tensor([False, False, True, True, True]))):
        for name, given in vars(part).items():
            assert torch.equal(getattr(both[rows], name), given)
            assert torch.equal(getattr(both.with_vector(both.vector)[rows], name), given)
    vector = Conditioning.cat([Conditioning(a.vector), Conditioning(b.vector)])[torch.tensor([4, 4])]
    assert torch.equal(vector.vector, b.vector[[2, 2]])
    assert vector.tokens is None
    unmasked = Conditioning.cat([Conditioning(None, a.tokens), Conditioning(None, b.tokens)])
    assert torch.equal(unmasked.tokens, both.tokens)
    assert unmasked.mask is None
    assert bool(unmasked.token_mask().all())


def test_shorter_sequences_are_padded_with_tokens_that_do_not_count():
    one = torch.ones(1)
    short = Conditioning(
        torch.ones(1, 2), torch.ones(1, 2, 3), None, torch.ones(1, 2), one, one, torch.ones(1, 1, 2, 2)
    )
    long, none = words(2, 4), words(1, 0)
    both = Conditioning.cat([long, short, none])
    assert both.tokens.shape == (4, 4, 3)
    assert both.mask.tolist() == [
        [True, False, False, False],
        [True, True, False, False],
        [True, True, False, False],
        [False, False, False, False],
    ]
    assert torch.equal(both.tokens[2, :2], short.tokens[0])


def test_flat_contains_only_tokens_that_count():
    cond = words(2, 4)
    hidden = Conditioning(cond.vector, torch.where(cond.mask[..., None], cond.tokens, torch.nan), cond.mask)
    row = torch.cat([cond.vector[1], cond.tokens[1, :2].flatten(), torch.zeros(6)])
    assert torch.equal(hidden.flat()[1], row)
    assert torch.equal(Conditioning(cond.vector).flat(), cond.vector)
    assert torch.equal(Conditioning(None, cond.tokens).flat(), cond.tokens.flatten(1))


def test_conditions_with_different_parts_cannot_be_joined():
    cond = words(2, 4)
    parts = {name: part for name, part in vars(cond).items() if name not in ("mask", "label")}
    for missing in parts:
        other = Conditioning(**{name: part for name, part in parts.items() if name != missing})
        with pytest.raises(ValueError, match="cannot be joined"):
            Conditioning.cat([cond, other])


def test_a_part_without_labels_has_no_class():
    both = Conditioning.cat(
        [Conditioning(torch.ones(2, 3), label=torch.tensor([4, 0])), Conditioning(torch.ones(1, 3))]
    )
    assert both.label.tolist() == [4, 0, -1]
