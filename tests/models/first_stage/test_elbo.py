"""The evidence lower bound of a model whose evidence is known."""

import math

import linear_gaussian
import pytest
import torch

from flowdiff.models.autoencoder.posterior import standard_normal

N = 20_000
X = torch.randn(3, linear_gaussian.DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def noise():
    return torch.randn(N, linear_gaussian.LATENT, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def bounds(vae, x):
    """The bound of one image for N draws of ε: (N,)."""
    return vae.elbo(x.expand(N, -1), noise()).bound


def test_with_the_true_posterior_the_bound_is_the_evidence_for_every_sample_and_with_closed_form_kl_in_the_mean():
    vae = linear_gaussian.vae()
    q, exact = vae.posterior(X), linear_gaussian.log_prob(X)
    latent = q.sample(noise()[:3])
    bound = vae.law.log_prob(X, vae.decoded(latent)) + standard_normal(latent) - q.log_prob(latent)
    torch.testing.assert_close(bound, exact)
    for x, evidence in zip(X, exact.tolist(), strict=True):
        found = bounds(vae, x)
        assert found.mean().item() == pytest.approx(evidence, abs=4 * found.std().item() / math.sqrt(N))


@pytest.mark.parametrize("wrong", [{"off": 0.3}, {"wider": 1.0}, {"wider": -1.0}, {"off": -0.1, "wider": 0.5}])
def test_with_another_posterior_the_bound_is_lower_by_the_divergence_from_the_true_one(wrong):
    vae = linear_gaussian.vae(**wrong)
    off, wider = wrong.get("off", 0.0), wrong.get("wider", 0.0)
    variance = linear_gaussian.S**2 / ((linear_gaussian.W**2).sum(0) + linear_gaussian.S**2)
    gap = 0.5 * (off**2 / variance + math.exp(wider) - 1 - wider).sum().item()
    found = bounds(vae, X[0])
    error = found.std().item() / math.sqrt(N)
    exact = linear_gaussian.log_prob(X[0]).item()
    assert found.mean().item() == pytest.approx(exact - gap, abs=4 * error)
    assert gap > 4 * error  # otherwise the test could not see the gap
