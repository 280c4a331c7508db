"""The classifier: a Wiener filter at the start, then guided by the class probabilities that it has learned."""

import pytest
import torch

from flowdiff import registry
from flowdiff.diffusion.denoiser import Denoiser
from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioning import Conditioning
from flowdiff.testing import oracles

MIXTURE = oracles.two_by_two(torch.float32)
X = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
SIGMA = torch.tensor([0.01, 0.1, 0.5, 1.0, 5.0, 50.0])
ONE_HOT = Conditioning(torch.eye(4)[[0, 1, 2, 3, 0, 1]])


def network(**runtime):
    torch.manual_seed(0)
    given = {"shape": (2,), "cond_dim": 4, "num_classes": 4, "activation": registry.create("activation", "swish")}
    given |= {"whitening": registry.create("whitening", "zca", shape=(2,)), "width": 32, "depth": 1, "embed_dim": 16}
    return registry.create("network", "classifier", **{**given, **runtime})


def test_at_the_start_classes_are_equally_likely_and_D_is_the_wiener_filter():
    classifier = network()
    classifier.whitening.fit([torch.randn(50, 2) @ torch.tensor([[1.0, 0.4], [0.0, 0.3]])])
    torch.testing.assert_close(classifier.class_log_prob(X, SIGMA).exp(), torch.full((6, 4), 0.25))
    covariance = classifier.whitening.basis @ classifier.whitening.eigenvalues.diag() @ classifier.whitening.basis.T
    wiener = oracles.Gaussian(classifier.whitening.mean, covariance)
    D = Denoiser(classifier.eval(), registry.create("scaling", "score"))(X, SIGMA, ONE_HOT)
    torch.testing.assert_close(D, wiener(X, SIGMA), atol=1e-5, rtol=1e-4)  # float32 rounding times σ² = 2,500


def test_its_score_is_the_gradient_of_both_terms():
    classifier = network().double()
    for p in classifier.parameters():
        p.data += 0.3 * torch.randn_like(p)
    x, sigma, cond = X.double(), SIGMA.double(), Conditioning(ONE_HOT.vector.double())

    def log_prob(x):
        y, _ = classifier.whitening(x, sigma)
        return -0.5 * (y**2).sum(1) + (cond.vector * classifier.class_log_prob(x, sigma)).sum(1)

    h = 1e-6
    expected = torch.stack([(log_prob(x + h * e) - log_prob(x - h * e)) / (2 * h) for e in torch.eye(2).double()], 1)
    torch.testing.assert_close(classifier.eval()(x, sigma, cond), expected, atol=1e-6, rtol=1e-6)
    without = classifier(x, sigma)
    torch.testing.assert_close(without, classifier(x, sigma, Conditioning(torch.zeros(6, 4, dtype=torch.float64))))


def test_cross_entropy_finds_the_true_posterior():
    """Trained on samples of a mixture, it predicts the posterior of new samples that Bayes' rule gives."""
    classifier = network(cond_dim=4)
    denoiser = Denoiser(classifier, registry.create("scaling", "score")).train()
    loss = registry.create("loss", "cross_entropy")
    optimizer = torch.optim.Adam(classifier.parameters(), 5e-3)
    for _ in range(200):
        labels = torch.randint(4, (128,))
        x0, noise = MIXTURE.sample(torch.zeros(128), MIXTURE.classes(labels)), torch.randn(128, 2)
        sigma = torch.exp(torch.randn(128) - 1)
        out = loss(denoiser, x0.float(), sigma, noise, Conditioning(torch.eye(4)[labels]))
        optimizer.zero_grad()
        out.loss.mean().backward()
        optimizer.step()
    assert out.parts["accuracy"].float().mean() > 0.5  # over a batch of all noise levels; chance is 0.25
    labels = torch.randint(4, (500,))
    sigma = torch.full((500,), 0.3)
    x = MIXTURE.sample(sigma, MIXTURE.classes(labels)).float()
    joint = [MIXTURE.log_prob(x, sigma, MIXTURE.classes(torch.full((500,), k))) for k in range(4)]
    bayes = torch.stack(joint, 1).softmax(1)
    distance = (classifier.class_log_prob(x, sigma).exp() - bayes).abs().sum(1).mean() / 2
    assert distance < 0.1  # total variation; untrained it is about 0.6


def test_conditions_other_than_one_hot_are_refused():
    for other in ({"cond_dim": 64}, {"num_classes": None}):
        with pytest.raises(ConfigurationError, match="set conditioner=one_hot"):
            network(**other)
