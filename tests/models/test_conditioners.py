"""Conditioners: conditions of labels, dropped labels in training, and the null condition."""

import pytest
import torch
from text_models import conditioner_settings

from flowdiff import registry
from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioners.base import Conditioner
from flowdiff.models.conditioning import Conditioning
from flowdiff.testing import check_conditioner
from flowdiff.testing import conditioners as laws


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder of the pretrained models that some conditioners need."""
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", registry.names("conditioner"))
def test_law(name, law, folder):
    for drop in (0.0, 0.25, 0.5):
        conditioner = registry.create("conditioner", num_classes=3, **conditioner_settings(name, folder, drop=drop))
        conditioner.fit(["a red three", "blue", "a green two left of a golden nine"])
        law(conditioner)


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


@pytest.fixture
def text():
    torch.manual_seed(0)
    conditioner = registry.create("conditioner", "text", dim=8, layers=1, heads=2, max_length=6, max_words=12)
    conditioner.fit(["a red three", "A blue two", "a red two left of a blue three"])
    return conditioner.eval()


def test_text_reads_words_in_lower_case_and_unknown_ones_alike(text):
    vector = text(["a red three", "A RED three", "a zebra three", "a violin three", "three red a"]).vector
    assert torch.equal(vector[0], vector[1])
    assert torch.equal(vector[2], vector[3])
    assert not torch.equal(vector[0], vector[2])
    assert not torch.equal(vector[0], vector[4])  # the order of the words counts


def test_text_says_what_it_does_not_read(text):
    assert text.cut("a red two left of a blue three") == "blue three"
    assert text.cut("a red two left of a") == ""
    long, short = text(["a red two left of a blue three", "a red two left of a"]).vector
    assert torch.equal(long, short)


def test_the_null_condition_of_text_is_the_empty_caption(text):
    torch.testing.assert_close(text.null(2).vector, text(["", ""]).vector)


def test_text_keeps_its_vocabulary_and_examples_in_the_checkpoint(text, tmp_path):
    torch.save(text.state_dict(), tmp_path / "text.ckpt")
    other = registry.create("conditioner", "text", dim=8, layers=1, heads=2, max_length=6, max_words=12).eval()
    with pytest.raises(ConfigurationError, match="has no vocabulary yet"):
        other(["a red three"])
    other.load_state_dict(torch.load(tmp_path / "text.ckpt", weights_only=True))
    assert torch.equal(other(["a blue three"]).vector, text(["a blue three"]).vector)
    assert other.examples() == text.examples() == ("a red three", "A blue two", "a red two left of a blue three")


class Described:
    """What a conditioner reads of a batch."""

    def __init__(self, label, captions):
        self.label, self.captions = label, captions


def test_a_caption_of_each_sample_is_drawn_by_the_generator(text):
    batch = Described(torch.zeros(3000), [("one", "two", "three")] * 3000)
    drawn = text.given(batch, torch.Generator().manual_seed(0))
    assert drawn == text.given(batch, torch.Generator().manual_seed(0))
    counts = [drawn.count(word) for word in ("one", "two", "three")]
    assert max(abs(count - 1000) for count in counts) < 4 * (3000 * 2 / 9) ** 0.5  # 4 standard deviations
    assert text.given(batch) == ["one"] * 3000
    assert registry.create("conditioner", "class", num_classes=2).given(batch) is batch.label


def test_the_width_of_text_is_a_multiple_of_its_heads():
    with pytest.raises(ConfigurationError, match=r"conditioner.dim=9 is not a multiple of conditioner.heads=2"):
        registry.create("conditioner", "text", dim=9, heads=2)


@pytest.mark.parametrize("name", ["class", "one_hot"])
def test_the_condition_names_the_class_and_a_dropped_one_has_none(name):
    conditioner = registry.create("conditioner", name, num_classes=4, drop=0.5)
    label = torch.arange(4).repeat(50)
    seen = conditioner.train()(label, torch.Generator().manual_seed(0))
    kept = seen.label >= 0
    assert 0.3 < kept.float().mean() < 0.7
    assert torch.equal(seen.label[kept], label[kept])
    assert torch.equal(seen.vector[~kept], conditioner.null(int((~kept).sum())).vector)
    assert torch.equal(conditioner.null(2).label, torch.tensor([-1, -1]))
