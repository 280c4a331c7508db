"""Conditioners: conditions of labels, dropped labels in training, and the null condition."""

import pytest
import torch

from flowdiff import registry
from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioners import Conditioner
from flowdiff.models.conditioning import Conditioning


def test_dropout_replaces_labels_by_the_null_condition():
    torch.manual_seed(0)
    conditioner = registry.create("conditioner", "class", num_classes=10, drop=0.25)
    labels = torch.arange(4000) % 10
    conditioner.train()
    first = conditioner(labels, torch.Generator().manual_seed(1)).vector
    again = conditioner(labels, torch.Generator().manual_seed(1)).vector
    assert torch.equal(first, again)
    dropped = (first == conditioner.null(1).vector).all(1).float().mean()
    assert abs(float(dropped) - 0.25) < 0.03  # 4,000 draws: standard error 0.007
    conditioner.eval()
    assert torch.equal(conditioner(labels).vector, conditioner.embedding.weight[labels])


def test_the_null_condition_differs_from_every_class():
    conditioner = registry.create("conditioner", "class", num_classes=3)
    null = conditioner.null(2).vector
    assert null.shape == (2, conditioner.dim)
    assert not any(torch.equal(null[0], row) for row in conditioner.embedding.weight[:3])


def test_class_needs_classes():
    with pytest.raises(ConfigurationError, match="set conditioner=none"):
        registry.create("conditioner", "class", num_classes=None)


def test_the_unconditional_conditioner_returns_none():
    conditioner = registry.create("conditioner", "none")
    assert conditioner(torch.zeros(3)) is None
    assert conditioner.null(3) is None
    assert conditioner.dim == 0


def test_one_hot_is_the_class_or_zeros_if_dropped():
    conditioner = registry.create("conditioner", "one_hot", num_classes=3, drop=0.5).train()
    labels = torch.arange(3000) % 3
    vector = conditioner(labels, torch.Generator().manual_seed(1)).vector
    kept = vector.sum(1) == 1
    assert torch.equal(vector[kept].argmax(1), labels[kept])
    assert not vector[~kept].any()
    assert abs(float(kept.float().mean()) - 0.5) < 0.04  # 3,000 draws: standard error 0.009
    assert torch.equal(conditioner.eval()(labels[:3]).vector, torch.eye(3))
    assert not conditioner.null(2).vector.any()
    with pytest.raises(ConfigurationError, match="conditioner=one_hot needs classes"):
        registry.create("conditioner", "one_hot", num_classes=None)


class Counted(Conditioner):
    """Label k becomes k + 1 tokens with the value k; the null condition is one token with the value −1."""

    token_dim = 1
    drop = 0.25

    def condition(self, label):
        mask = torch.arange(3) <= label[:, None]
        return Conditioning(tokens=label[:, None, None].expand(-1, 3, 1).float(), mask=mask)

    def null(self, n):
        return Conditioning(tokens=torch.full((n, 1, 1), -1.0))


def test_token_sequences_are_dropped_like_vectors():
    conditioner, labels = Counted().train(), torch.arange(3000) % 3
    cond = conditioner(labels, torch.Generator().manual_seed(1))
    kept = cond.tokens[:, 0, 0] == labels
    assert abs(float(kept.float().mean()) - 0.75) < 0.03  # 3,000 draws: standard error 0.008
    assert torch.equal(cond.mask.sum(1), torch.where(kept, labels + 1, 1))
    assert (cond.tokens[~kept, 0, 0] == -1).all()
    again = conditioner(labels, torch.Generator().manual_seed(1))
    assert torch.equal(again.tokens, cond.tokens)
    assert torch.equal(again.mask, cond.mask)
    assert torch.equal(conditioner.eval()(labels).tokens[:, 0, 0], labels.float())


@pytest.mark.parametrize("name", [name for name in registry.names("conditioner") if name != "none"])
def test_a_dropped_label_is_the_null_condition(name):
    """For every registered conditioner, a dropped label gives the same condition as `null`."""
    conditioner = registry.create("conditioner", name, num_classes=3, drop=1 - 1e-9).train()
    labels = torch.tensor([0, 1, 2, 2])
    cond = conditioner(labels, torch.Generator().manual_seed(0))
    assert torch.equal(cond.flat(), conditioner.null(4).flat())
    assert not torch.equal(conditioner.eval()(labels).flat(), cond.flat())
