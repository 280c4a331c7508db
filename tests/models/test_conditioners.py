"""Conditioners: conditions of labels, dropped labels in training, and the null condition."""

import pytest
import torch

from flowdiff import registry
from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioners.base import Conditioner
from flowdiff.models.conditioning import Conditioning
from flowdiff.testing import check_conditioner
from flowdiff.testing import conditioners as laws


@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", registry.names("conditioner"))
def test_law(name, law):
    for drop in (0.0, 0.25, 0.5):
        law(registry.create("conditioner", name, num_classes=3, drop=drop))


def test_a_class_is_its_row_of_the_embedding():
    conditioner = registry.create("conditioner", "class", num_classes=10, drop=0.25).eval()
    labels = torch.arange(20) % 10
    assert torch.equal(conditioner(labels).vector, conditioner.embedding.weight[labels])


@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.__name__)
def test_law_with_the_mean_class_as_null(law):
    for drop in (0.0, 0.25):
        law(registry.create("conditioner", "class", num_classes=3, drop=drop, null_condition="mean"))


def test_the_null_condition_may_be_the_mean_of_the_classes_and_trains_them_all():
    conditioner = registry.create("conditioner", "class", num_classes=5, dim=4, null_condition="mean")
    classes = conditioner.condition(torch.arange(5)).vector
    null = conditioner.null(3).vector
    torch.testing.assert_close(null, classes.mean(0).expand(3, -1))
    slope = torch.arange(4.0)
    (null[0] * slope).sum().backward()
    torch.testing.assert_close(conditioner.embedding.weight.grad, (slope / 5).expand(5, -1))
    conditioner.embedding.weight.data += 1  # it follows the classes
    torch.testing.assert_close(conditioner.null(1).vector, null[:1] + 1)


def test_the_learned_null_condition_is_a_row_of_its_own():
    conditioner = registry.create("conditioner", "class", num_classes=5, null_condition="learned")
    assert torch.equal(conditioner.null(2).vector, conditioner.embedding.weight[[5, 5]])


def test_a_single_class_is_no_mean_of_classes():
    with pytest.raises(ConfigurationError, match=r"set conditioner\.null_condition=learned"):
        registry.create("conditioner", "class", num_classes=1, null_condition="mean")


def test_class_needs_classes():
    with pytest.raises(ConfigurationError, match="set conditioner=none"):
        registry.create("conditioner", "class", num_classes=None)


def test_the_unconditional_conditioner_returns_none():
    conditioner = registry.create("conditioner", "none")
    assert conditioner(torch.zeros(3)) is None
    assert conditioner.null(3) is None
    assert conditioner.dim == 0


def test_one_hot_is_the_class_or_zeros_if_dropped():
    conditioner = registry.create("conditioner", "one_hot", num_classes=3, drop=0.5)
    assert torch.equal(conditioner.eval()(torch.arange(3)).vector, torch.eye(3))
    assert not conditioner.null(2).vector.any()
    with pytest.raises(ConfigurationError, match="conditioner=one_hot needs classes"):
        registry.create("conditioner", "one_hot", num_classes=None)


class Counted(Conditioner):
    """Label k becomes k + 1 tokens with the value k; the null condition is one token with the value −1."""

    token_dim, num_classes = 1, 3
    drop = 0.25

    def condition(self, label):
        mask = torch.arange(3) <= label[:, None]
        return Conditioning(tokens=label[:, None, None].expand(-1, 3, 1).float(), mask=mask)

    def null(self, n):
        return Conditioning(tokens=torch.full((n, 1, 1), -1.0))


def test_token_sequences_are_dropped_like_vectors():
    conditioner, labels = Counted(), torch.arange(3000) % 3
    check_conditioner(conditioner)
    cond = conditioner.train()(labels, torch.Generator().manual_seed(1))
    kept = cond.tokens[:, 0, 0] == labels
    assert torch.equal(cond.mask.sum(1), torch.where(kept, labels + 1, 1))
    assert (cond.tokens[~kept, 0, 0] == -1).all()
