"""Class posteriors against Bayes' rule on mixtures whose posterior is known."""

import math

import pytest
import torch
from given_data import GivenData
from torch.nn import functional

from flowdiff import registry
from flowdiff.data.base import Captions, TensorSplit
from flowdiff.data.readers import evenly
from flowdiff.evaluation.densities.classification import calibration_error, classify, log_joint
from flowdiff.models.conditioners.base import Conditioner
from flowdiff.models.conditioning import Conditioning
from flowdiff.testing.models import model_of
from flowdiff.testing.oracles import Mixture


def labelled(x, labels):
    split = TensorSplit(x, labels)
    return GivenData("labelled", split, split, None, 2)


def model(mixture):
    """A class-conditional model of a mixture of two classes."""
    return model_of(mixture.network, conditioner=registry.create("conditioner", "one_hot", num_classes=2))


def test_posterior_of_two_gaussians_is_the_logistic_function():
    # log p(0|x)/p(1|x) of N(±m, s²) in one dimension is 2·m·x/(s² + σ²).
    oracle = Mixture(torch.tensor([[1.5], [-1.5]]), torch.tensor([0.5, 0.5]))
    x = torch.linspace(-4, 4, 9, dtype=torch.float64)[:, None]
    sigma = torch.full((9,), 0.8, dtype=torch.float64)
    joint = log_joint(model(oracle), x, sigma)
    assert torch.allclose(joint.logsumexp(1), oracle.log_prob(x, sigma, oracle.null(9)), atol=1e-12)
    found = joint.log_softmax(1)
    odds = 2 * 1.5 * x[:, 0] / (0.25 + 0.64)
    assert torch.allclose(found[:, 0], torch.nn.functional.logsigmoid(odds), atol=1e-12)


def test_accuracy_and_calibration_of_the_true_posterior():
    """The data are drawn from the mixture itself: its posterior is calibrated, and its error is the Bayes error."""
    n = 4000
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (n,), generator=generator)
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    x = means[labels] + 0.5 * torch.randn(n, 2, generator=generator)
    data = labelled(x, labels)
    oracle = model(Mixture(means, torch.tensor([0.5, 0.5])))
    found = classify(oracle, data, 0.5, seed=1, batch_size=512)
    bayes = 0.5 * (1 + math.erf(1 / math.sqrt(2 * (0.25 + 0.25))))  # Φ(1/√(s² + σ²))
    assert found.accuracy == pytest.approx(bayes, abs=4 * found.standard_error)
    # Fifteen bins of 4,000 points: an empirical bin accuracy is off by about √(0.1·15/4000) = 0.02.
    assert found.calibration_error < 0.03
    again = classify(oracle, data, 0.5, seed=1, batch_size=7)
    assert again == pytest.approx(found)
    wide = labelled(means[labels] + torch.randn(n, 2, generator=generator), labels)
    sure = model(Mixture(means, torch.tensor([0.3, 0.3])))  # the data are much wider than it believes
    assert classify(sure, wide, 0.1, seed=1, batch_size=500).calibration_error > 0.1


class Numbers(Conditioner):
    """A conditioner of a mixture whose captions are the numbers of its components."""

    reads_text = True
    dim = 25

    def condition(self, given):
        return Conditioning(functional.one_hot(torch.tensor([int(text) for text in given]), self.dim).double())

    def null(self, n):
        return Conditioning(torch.zeros(n, self.dim))


def captioned(n, std, mislabelled=0):
    """A density of captions, and n samples of its components in turn, of which some have the next one's caption."""
    means = torch.arange(Numbers.dim)[:, None].float()
    component = torch.arange(n) % Numbers.dim
    split = TensorSplit(means[component] + std * torch.randn(n, 1, generator=torch.Generator().manual_seed(0)))
    named = [(k + (i < mislabelled)) % Numbers.dim for i, k in enumerate(component.tolist())]
    split.captions = Captions([(str(k), "a wording that is not read") for k in named])
    mixture = Mixture(means, torch.full((Numbers.dim,), std))
    return model_of(mixture.network, conditioner=Numbers()), GivenData("captioned", split, split, None, None)


def test_accuracy_among_captions_is_that_of_bayes():
    """The components stand at 0, 1, 2, …: a sample is right unless noise carries it nearer to a neighbour."""
    density, data = captioned(5000, std=0.3)
    found = classify(density, data, 0.4, seed=1, batch_size=64)
    neighbours = 2 * (1 - 1 / Numbers.dim)  # on the average, because the first and the last have one
    bayes = 1 - neighbours * 0.5 * (1 - math.erf(0.5 / math.sqrt(2 * (0.3**2 + 0.4**2))))
    assert found.accuracy == pytest.approx(bayes, abs=4 * found.standard_error)
    assert found.calibration_error < 0.03
    assert classify(density, data, 0.4, seed=1, batch_size=500) == pytest.approx(found)


def test_samples_with_the_caption_of_another_are_wrong():
    density, data = captioned(430, std=0.01, mislabelled=90)
    found = classify(density, data, 0.01, seed=1, batch_size=64)
    assert found.n == 400  # a rest of fewer than 100 is left out
    assert found.accuracy == 1 - 90 / 400
    few = classify(density, data, 0.01, seed=1, batch_size=64, most=7)
    assert few.n == 7


def test_calibration_error_equals_that_of_torchmetrics():
    from torchmetrics.functional.classification import binary_calibration_error

    generator = torch.Generator().manual_seed(0)
    confidence = torch.rand(500, generator=generator, dtype=torch.float64)
    correct = (torch.rand(500, generator=generator) < 0.7).double()
    expected = binary_calibration_error(confidence, correct.long(), n_bins=15)
    assert calibration_error(confidence, correct) == pytest.approx(float(expected), abs=1e-6)
    assert calibration_error(torch.ones(3), torch.ones(3)) == 0
    assert math.isnan(calibration_error(torch.tensor([0.5, torch.nan]), torch.ones(2)))


def test_positions_are_evenly_spaced():
    assert evenly(5, None).tolist() == evenly(5, 9).tolist() == [0, 1, 2, 3, 4]
    assert evenly(9, 3).tolist() == [0, 4, 8]
    assert len(evenly(60_000, 1000).unique()) == 1000
